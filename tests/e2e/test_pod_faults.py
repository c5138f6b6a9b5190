# cores: 1
"""moe-pod against an emulated RunPod whose calls fail and whose pods come late or go early, and moe-pod killed: there
are always results or a clear error in the end, and never a pod that nobody knows of, nor two for one model."""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest

import helpers
import interrupted
import pod_study
import processes
import runpod_state

pytestmark = pytest.mark.skipif(
    pod_study.missing() is not None, reason=f"no moe-pod or sshd here: {pod_study.missing()}"
)

MODEL = "olmoe_a"
CONFIG = f"configs/{MODEL}.cfg"
ID = r"/v2/pods/\w+"
AT_ONCE = 8
SHORT = {"MOE_POD_TIMEOUT": "2"}  # where time-outs are waited for
LONG = {"sequences": 24, "length": 256}

scenes = pod_study.Scenes()


@pytest.fixture(scope="module")
def started(request, tmp_path_factory):
    """{name: future} of the scenes that are asked for."""
    folder = tmp_path_factory.mktemp("faults")
    repository = pod_study.Repository(folder / "repository", (MODEL,), demo=False)
    account = pod_study.Account(folder)
    (folder / "scenes").mkdir()
    names = [item.callspec.params["name"] for item in request.session.items if item.name.startswith("test_scene[")]
    futures, pool = scenes.start(names, folder / "scenes", repository, account, AT_ONCE)
    yield futures
    pool.shutdown(cancel_futures=True)


# --- the client is killed ---


def start_until_it_ends(study, kill, **more):
    """Starts the run again and again; kill(number, process) may kill it. How often it was killed."""
    for number in range(1, 60):
        process = study.start("run", CONFIG, **more)
        kill(number, process)
        output, _ = process.communicate(timeout=120)
        study.assert_all_known()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, output + study.story()
            break
    study.assert_done(MODEL)
    assert len(study.emulator.history) == 1
    return number - 1


@scenes.add("before", "after")
def killed_at_each_call(study, when):
    """The n-th start is killed at its n-th call: before it gets there, or when it was carried out."""

    def kill(number, process):
        seen = []

        def observe(moment, method, path):
            if moment == when:
                seen.append(path)
                if len(seen) == number:
                    process.kill()

        study.emulator.observe = observe

    assert start_until_it_ends(study, kill) >= 3


# In place of ssh, for rsync too. It kills the client, whose pid is in a file, at the call whose number is in another.
SSH = """#!/bin/bash
cd {folder}
exec 9>lock
flock 9
echo >>calls
number=$(wc -l <calls)
exec 9>&-
if ((number == $(<at) && number % 2)); then
  kill -9 "$(<client)"
  exit 255
fi
ssh "$@"
status=$?
if ((number == $(<at))); then kill -9 "$(<client)"; fi
exit $status
"""


@scenes.add(0, 4)
def killed_at_each_remote_command(study, more):
    """The n-th start is killed at its n-th command on the pod, or the one that is so many after that."""
    folder = study.hold.parent / "ssh"
    folder.mkdir()
    wrapper = folder / "ssh"
    wrapper.write_text(SSH.format(folder=folder))
    wrapper.chmod(0o755)
    (folder / "at").write_text("0")

    def kill(number, process):
        (folder / "calls").write_text("")
        (folder / "client").write_text(str(process.pid))
        (folder / "at").write_text(str(number + more))

    assert start_until_it_ends(study, kill, MOE_POD_SSH=str(wrapper)) >= 3


@scenes.add()
def killed_again_and_again(study):
    """Later from start to start."""

    def kill(number, process):
        try:
            process.wait(0.15 * number)
        except subprocess.TimeoutExpired:
            process.kill()

    assert start_until_it_ends(study, kill) >= 5


# --- calls fail ---


@scenes.add("429", "500", "drop", "reset", "hang", "hang after")
def each_call_fails_once(study, kind):
    emulator = study.emulator
    for method, path in (
        ("GET", "/v2/account/ssh-keys"),
        ("GET", "/v2/catalog/gpus"),
        ("GET", "/v2/pods"),
        ("GET", "/v2/clusters"),
        ("POST", "/v2/pods"),
        ("DELETE", ID),
    ):
        emulator.fail(method, path, kind)
    emulator.fail("GET", ID, kind, first=1)
    emulator.fail("GET", ID, kind, first=3)
    study.call("run", CONFIG, **(SHORT if "hang" in kind else {}))
    assert all(fault.seen for fault in emulator.faults if fault.method in ("POST", "DELETE")), emulator.faults
    study.assert_done(MODEL)
    assert len(emulator.history) == 1


@scenes.add("garbage", "empty")
def answers_that_make_no_sense(study, kind):
    """An error, or not; the same command goes on, with the pod that there may be."""
    for method, path in (("POST", "/v2/pods"), ("GET", ID), ("DELETE", ID)):
        study.emulator.fail(method, path, kind)
    for _ in range(4):
        process = study.start("run", CONFIG)
        output, _ = process.communicate(timeout=120)
        study.assert_all_known()
        if process.returncode == 0:
            break
        assert process.returncode == 1 and re.search(r"^moe-pod: error: ", output, re.MULTILINE), output
    assert process.returncode == 0, output + study.story()
    study.assert_done(MODEL)


@scenes.add("429", "500", "reset", "hang")
def a_call_fails_for_good(study, kind):
    """No pod can be made: that is said, and there is none."""
    study.emulator.fail("POST", "/v2/pods", kind, times=1000)
    output = study.call("run", CONFIG, status=1, MOE_POD_PATIENCE="2", **SHORT)
    assert re.search(r"^moe-pod: error: .+", output, re.MULTILINE), output
    study.assert_nothing_left()


@scenes.add("500", "hang", "reset")
def delete_fails_for_good(study, kind):
    """What goes on costing money is said, with the command that ends it."""
    study.emulator.fail("DELETE", ID, kind, times=1000)
    output = study.call("run", CONFIG, status=1, MOE_POD_PATIENCE="2", **SHORT)
    (pod,) = study.emulator.pods.values()
    assert re.search(rf"{pod.id}.*\$.*moe-pod terminate {pod.id}", output), output
    study.assert_same(MODEL)
    study.emulator.faults.clear()
    study.call("terminate", pod.id)
    study.assert_nothing_left()


@scenes.add(quota=2, window=2)
def calls_are_rationed(study):
    """Two in two seconds: it heeds what the answers say is left."""
    study.call("run", CONFIG, MOE_POD_PATIENCE="30")
    assert len([call for call in study.emulator.calls if call.status == 429]) <= 1
    study.assert_done(MODEL)


# --- pods and the way to them ---


@scenes.add()
def ssh_comes_late(study):
    study.emulator.doom(MODEL, ssh_late=1.5)
    study.call("run", CONFIG)
    study.assert_done(MODEL)


@scenes.add()
def ssh_never_comes(study):
    study.emulator.doom(MODEL, ssh_late=1000, times=100)
    output = study.call("run", CONFIG, status=1, MOE_POD_REACH="2")
    assert "ssh" in output
    study.assert_nothing_left()


@scenes.add("ERROR", "EXITED")
def pod_ends_at_its_start(study, status):
    """The next one does."""
    study.emulator.doom(MODEL, status)
    study.call("run", CONFIG)
    assert len(study.emulator.history) == 2
    study.assert_done(MODEL)


@scenes.add("ERROR", "EXITED")
def every_pod_ends_at_its_start(study, status):
    study.emulator.doom(MODEL, status, times=1000)
    output = study.call("run", CONFIG, status=1)
    assert status in output
    study.assert_nothing_left()


@scenes.add(0, 2000)
def transfers_are_cut(study, after):
    """The first rsync to each pod, and the first after its run."""
    emulator = study.emulator
    cut = set()

    def observe(moment, method, path):
        for pod in list(emulator.pods.values()):
            if pod.id not in cut:
                cut.add(pod.id)
                pod.host.cut_next_transfer(after)

    emulator.observe = observe
    with study.held("run", CONFIG) as (process, pod):
        pod.host.cut_next_transfer(after)
        study.hold.unlink()
        study.finish(process)
    assert len(list(emulator.folder.glob("*/cut*"))) == 0
    study.assert_done(MODEL)


@scenes.add("vanishes", "stops", "crashes")
def pod_goes_during_the_run(study, how):
    with study.held("run", CONFIG) as (process, pod):
        if how == "vanishes":
            study.emulator.vanish(pod)
        elif how == "stops":
            os.kill(pod.host.first.pid, signal.SIGTERM)
        else:
            with study.emulator.lock:
                pod.left.set()
                study.emulator.become(pod, "ERROR")
                pod.host.kill()
        study.hold.unlink()
        study.finish(process)
    assert len(study.emulator.history) == 2
    study.assert_done(MODEL)


@scenes.add()
def told_to_save_it_goes_on(study):
    """Exit status 75 of the run is no failure: it is started again."""
    with study.held("run", CONFIG) as (process, pod):
        image = study.hold.parent / "moe-outliers"
        once = image.with_name("stopped once")
        text = image.read_text()
        image.write_text(text.replace("exec ", f'[[ -e "{once}" ]] || {{ touch "{once}"; exit 75; }}\nexec '))
        study.hold.unlink()
        study.finish(process)
    study.assert_done(MODEL)


def add_long_run(study):
    """Config of a run of some seconds that saves all the time, by absolute paths, and what its result must be."""
    folder = study.hold.parent / "long"
    folder.mkdir()
    config = interrupted.config(folder, data=LONG)
    config.write_text(f"{config.read_text()}deployment: {{ gpus = 1; min_vram_gb = 40.0; }};\n")
    helpers.run(["run", config, "-s", f"output.path={folder}/unbroken.h5"])
    return config, interrupted.contents(folder / "unbroken.h5")


@scenes.add()
def pod_vanishes_and_what_is_saved_is_not_lost(study):
    """The next one continues."""
    config, expected = add_long_run(study)
    ranks = []

    def is_under_way():
        for pod in study.emulator.pods.values():
            output = pod_study.folder_of(pod) / "out"
            for journal in output.glob("r.h5.resume/journal-*.log"):
                with contextlib.suppress(FileNotFoundError):  # the run has come to its end
                    if journal.stat().st_size > 300000:
                        ranks[:] = [pid for pid in pod.host.processes() if is_rank(pid)]
                        return ranks and pod
        return None

    with study.running("run", config) as process:
        pod = study.wait(is_under_way, 60, "nothing is saved")
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        journals = study.folder / ".moe-pod" / "runs"
        study.wait(lambda: any(journals.glob("*/journal/journal-*.log")), 60, "nothing that was saved is brought here")
        time.sleep(1)
        study.emulator.vanish(pod)
        study.finish(process)
    assert len(study.emulator.history) == 2
    logs = "".join(path.read_text(errors="replace") for path in journals.rglob("run.log"))
    assert "continuing from" in logs, logs
    interrupted.assert_finished(config.parent, expected)
    study.assert_nothing_left()


def is_rank(pid):
    return processes.command(pid)[0] == str(helpers.program()).encode()


@scenes.add()
def no_room_on_the_pod(study):
    """A full disk is told from a cut connection."""
    folder = study.hold.parent / "disk"
    with helpers.small_disk(folder, "100k"):
        study.emulator.session["MOE_POD_REMOTE_DIR"] = folder / "moe-outliers"
        output = study.call("run", CONFIG, status=1)
        assert "container_disk_gb" in output, output
        study.assert_nothing_left()


@scenes.add()
def no_disk_left_for_the_result(study):
    """The run's last words are brought here before the pod goes."""
    image = study.hold.parent / "moe-outliers"
    image.write_text(
        image.read_text().replace(
            "exec ", '[[ $1 != run ]] || { echo "error: No space left on device" >&2; exit 1; }\nexec '
        )
    )
    output = study.call("run", CONFIG, status=1)
    assert "No space left on device" in output or re.search(r"run\.log", output), output
    logs = [path.read_text(errors="replace") for path in (study.folder / ".moe-pod").rglob("run.log")]
    assert any("No space left on device" in text for text in logs)
    study.assert_nothing_left()


@scenes.add()
def no_place_here_for_the_result(study):
    """A finished result stays on its pod until this machine can store it; what has no place from the start is not
    ordered."""
    results = study.folder / "results"
    with study.held("run", CONFIG) as (process, pod):
        results.rmdir()
        results.write_text("in the way")
        study.hold.unlink()
        output, _ = process.communicate(timeout=120 * helpers.SLOW)
    assert process.returncode == 1 and "the result is still on the pod" in output, output
    assert f"moe-pod terminate {pod.id}" in output and study.emulator.alive() == [pod.id], output
    results.unlink()
    study.call("run", CONFIG)
    study.assert_done(MODEL)
    assert len(study.emulator.history) == 1
    output = study.call("run", CONFIG, "-s", f"output.path={CONFIG}/r.h5", status=1)
    assert "cannot make the folder" in output and len(study.emulator.history) == 1, output


@scenes.add()
def full_disk_here(study):
    """What cannot be recorded neither ends a healthy run nor its pod."""
    folder = study.hold.parent / "state"
    with helpers.small_disk(folder, "1m"):
        with study.held("run", CONFIG, MOE_POD_STATE=str(folder)) as (process, pod):
            with contextlib.suppress(OSError):
                (folder / "filler").write_bytes(bytes(2000000))
            time.sleep(2)
            assert process.poll() is None
            study.hold.unlink()
            output, _ = process.communicate(timeout=120 * helpers.SLOW)
        assert process.returncode == 1 and f"moe-pod terminate {pod.id}" in output, output
        assert study.emulator.alive() == [pod.id]
        (folder / "filler").unlink()
        study.call("run", CONFIG, MOE_POD_STATE=str(folder))
        study.assert_done(MODEL)
        assert len(study.emulator.history) == 1


@scenes.add()
def error_is_no_text(study):
    """The pod is ended whatever its last words are."""
    image = study.hold.parent / "moe-outliers"
    words = r"error: \xff half \xe2\x82"
    image.write_text(
        image.read_text().replace("exec ", f"[[ $1 != run ]] || {{ printf '{words}' >&2; exit 1; }}\nexec ")
    )
    output = study.call("run", CONFIG, status=1)
    assert "error: ? half ??" in output and "still running" not in output, output
    study.assert_nothing_left()
    assert study.json("status")["runs"][0]["error"].count("?") >= 3


@scenes.add()
def second_pod_is_listed_late(study):
    """Of an order whose answer was lost, after another one was answered and the client was killed."""
    emulator = study.emulator
    emulator.fail("POST", "/v2/pods", "drop")
    hidden, list_pods = [True], emulator.listPods

    def listed(parts, query, body):
        status, answer = list_pods(parts, query, body)
        first = emulator.history[0].id if emulator.history else None
        return status, {"pods": [pod for pod in answer["pods"] if not (hidden[0] and pod["id"] == first)]}

    emulator.listPods = listed
    study.hold.touch()
    with study.running("run", CONFIG) as process:
        study.wait(study.hold.with_suffix(".ticks").exists, 60, "the run does not begin")
        process.kill()
    hidden[0] = False
    first, second = (pod.id for pod in emulator.history)
    live = {pod["id"]: pod["live"] for pod in study.json("list")["pods"]}
    assert live == {first: False, second: True}
    with study.running("run", CONFIG) as process:
        study.wait(lambda: emulator.alive() == [second], 30, "the first pod goes on")
        study.hold.unlink()
        study.finish(process)
    study.assert_same(MODEL)
    assert not emulator.alive() and len(emulator.history) == 2


@scenes.add()
def what_runs_is_said(study):
    """By every command, whatever becomes of it; a result of other settings is not taken for this one."""
    study.call("run", CONFIG, "--keep")
    (pod,) = study.emulator.pods.values()
    said = rf"still running: {pod.id} .*\$0\.40 per hour.* moe-pod terminate {pod.id}"
    other = ("run", CONFIG, "-s", "analysis.threshold=3.0")
    commands = [
        (("run", "configs/none.cfg"), 2),
        (("sweep", CONFIG, "configs/none.cfg"), 2),
        (other, 2),
        (("fetch", MODEL), 0),
        (("logs", MODEL), 0),
        (("status", "no such run"), 2),
    ]
    for command, status in commands:
        output = study.call(*command, status=status)
        assert len(re.findall(said, output)) == 1, f"{command}: {output}"
    (study.folder / ".env").write_text("this is no line of it\n")
    assert re.search(said, study.call("status", status=2))
    (study.folder / ".env").unlink()
    assert "still running" not in study.call("run", CONFIG)
    study.assert_done(MODEL)
    assert "output.overwrite" in study.call(*other, status=2)
    assert len(study.emulator.history) == 1


@scenes.add()
def dearer_than_the_catalog_says(study):
    study.make_pods_dearer(40.0)
    output = study.call("run", CONFIG, "--max-price", "0.5", status=1)
    assert "$40.00 per hour, more than the $0.50 that --max-price allows" in output, output
    assert len(study.emulator.history) == 1
    study.assert_nothing_left()


@scenes.add()
def interrupted_for_good(study):
    """With --terminate-on-interrupt: what there is of the run is brought before its pod goes."""
    with study.held("run", CONFIG, "--terminate-on-interrupt") as (process, pod):
        time.sleep(1)
        (log,) = (study.folder / ".moe-pod" / "runs").glob(f"*/{pod.id}/setup.log")
        log.unlink()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60 * helpers.SLOW)
    assert process.returncode == 1 and "still running" not in output, output
    assert log.is_file(), output
    study.assert_nothing_left()


@scenes.add()
def build_fails(study):
    image = study.hold.parent / "moe-outliers"
    image.chmod(0o644)
    output = study.call("run", CONFIG, status=1)
    assert "MOE_POD_PROGRAM" in output or "setup.log" in output, output
    logs = [path.read_text(errors="replace") for path in (study.folder / ".moe-pod").rglob("setup.log")]
    assert any("MOE_POD_PROGRAM" in text for text in logs), study.story()
    study.assert_nothing_left()


# --- capacity ---


@scenes.add()
def no_capacity_takes_the_next(study):
    """The catalog says that there is stock, but there is none: other places, then the next type."""
    study.emulator.refused = {(pod_study.GPU, None)}
    study.call("run", CONFIG)
    (pod,) = study.emulator.history
    assert pod.request["gpu"]["id"] == pod_study.NEXT_GPU
    study.assert_done(MODEL)


@scenes.add()
def no_capacity_in_one_place(study):
    study.emulator.refused = {(pod_study.GPU, "US-KS-2")}
    study.call("run", CONFIG)
    (pod,) = study.emulator.history
    assert (pod.request["gpu"]["id"], pod.place) == (pod_study.GPU, "EU-RO-1")
    study.assert_done(MODEL)


@scenes.add()
def no_capacity_at_all(study):
    study.emulator.refused = {(gpu.id, None) for gpu in runpod_state.GPUS}
    output = study.call("run", CONFIG, status=1)
    assert "no longer any instances available" in output and re.search(r"NVIDIA|A40|GPU", output), output
    assert not study.emulator.history


# --- listings ---


@scenes.add("410", "500", "garbage", "empty", "empty list", "reset")
def a_listing_that_fails_is_not_empty(study, kind):
    for path in ("/v2/pods", "/v2/clusters"):
        study.emulator.faults.clear()
        study.emulator.fail("GET", path, kind, times=1000)
        for command in ("list", "cleanup"):
            output = study.call(command, status=1, MOE_POD_PATIENCE="1", **SHORT)
            assert re.search(r"^moe-pod: error: ", output, re.MULTILINE), output


@pytest.mark.parametrize("name", scenes.functions)
def test_scene(started, name):
    started[name].result()
