# cores: 1
"""moe-pod from one end to the other: an emulated RunPod, a real sshd for each pod, real runs, whose results are those
of local ones."""

import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.error
import urllib.request

import pytest

import helpers
import pod_study
import runpod_emulator
import runpod_state
import slurm_cluster

pytestmark = [
    pytest.mark.skipif(pod_study.missing() is not None, reason=f"no moe-pod or sshd here: {pod_study.missing()}"),
    pytest.mark.skipif(os.environ.get("MO_SANITIZE") == "1", reason="mostly waits, with the limits of a plain build"),
]

MODEL = "olmoe_a"
CONFIG = f"configs/{MODEL}.cfg"
AT_ONCE = 8
MUTATING = {"POST", "PUT", "PATCH", "DELETE"}

scenes = pod_study.Scenes()


@pytest.fixture(scope="module")
def started(request, tmp_path_factory):
    """{name: future} of the scenes that are asked for, and what watches them."""
    folder = tmp_path_factory.mktemp("pod")
    repository = pod_study.Repository(folder / "repository")
    account = pod_study.Account(folder)
    (folder / "scenes").mkdir()
    names = [item.callspec.params["name"] for item in request.session.items if item.name.startswith("test_scene[")]
    with pod_study.ProcessWatch(account) as watch:
        futures, pool = scenes.start(names, folder / "scenes", repository, account, AT_ONCE)
        yield futures, watch
        pool.shutdown(cancel_futures=True)


def close(dollars, billed, pods=1):
    """What the client says against the bill: it may know of a pod's birth and end a second late."""
    highest = max(gpu.secure for gpu in runpod_state.GPUS)
    return abs(dollars - billed) <= max(0.02 * billed, pods * 2 * highest / 3600)


# --- money. These wait longest, hence the first to start. ---


@scenes.add()
def prices_have_limits(study):
    output = study.call("run", CONFIG, "--max-price", "0.10", status=2)
    assert "with --max-price 0.40" in output and "A40" in output, output
    output = study.call("sweep", CONFIG, "--budget", "0.00001", status=2)
    assert "budget" in output, output
    assert not study.emulator.history


@scenes.add()
def budget_ends_a_sweep(study):
    """A pod that is dearer than the catalog says is ended when the money is spent."""
    study.hold.touch()
    study.make_pods_dearer(40.0)
    output = study.call("sweep", CONFIG, "--budget", "0.2", status=1)
    assert "budget" in output, output
    study.assert_nothing_left()
    assert 0.2 < study.emulator.billed() < 1


@scenes.add()
def hours_end_a_run(study):
    study.hold.touch()
    output = study.call("run", CONFIG, "--max-hours", str(6 / 3600), status=1, MOE_POD_MARGIN="30")
    assert "--max-hours" in output and len(study.emulator.history) == 1, output
    study.assert_nothing_left()


@scenes.add()
def asleep_at_the_deadline(study):
    """As a laptop is: its watchdog has ended the pod meanwhile, and no other one is made."""
    with study.held("run", CONFIG, "--max-hours", str(25 / 3600)) as (process, _):
        process.send_signal(signal.SIGSTOP)
        study.wait(lambda: not study.emulator.alive(), what="the pod goes on")
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "--max-hours" in output, output
    assert len(study.emulator.history) == 1
    study.assert_nothing_left()


def leave_alone(study, *options, **more):
    """A run whose client is dead; its pod."""
    with study.held("run", CONFIG, *options, **more) as (process, pod):
        process.kill()
    return pod


@scenes.add()
def watchdog_heeds_the_deadline(study):
    """By the pod's own key."""
    pod = leave_alone(study, "--max-hours", str(30 / 3600))
    study.wait(lambda: not study.emulator.alive(), what="the pod goes on")
    assert ("DELETE", f"/v2/pods/{pod.id}", 204, pod.id) in {call[1:] for call in study.emulator.calls}
    assert 28 < pod.ended - pod.created < 90  # whole seconds, from an earlier moment


@scenes.add(container={"RUNPOD_API_KEY": ""})
def watchdog_without_a_key_stops_its_container(study):
    pod = leave_alone(study, "--max-hours", str(30 / 3600))
    study.wait(lambda: pod.status == "EXITED", what="the pod goes on")
    assert study.emulator.rate(pod) == 0
    study.hold.unlink()
    study.call("run", CONFIG)
    study.assert_done(MODEL)


@scenes.add()
def watchdog_ends_what_is_done(study):
    """Completion, and then nobody comes for the grace."""
    pod = leave_alone(study, MOE_POD_GRACE="2")
    study.hold.unlink()
    study.wait(lambda: not study.emulator.alive(), what="the pod goes on")
    assert pod.ended
    study.call("run", CONFIG)
    study.assert_done(MODEL)


@scenes.add()
def watchdog_ends_what_hangs(study):
    leave_alone(study, MOE_POD_STALL="2")
    study.wait(lambda: not study.emulator.alive(), what="the pod goes on")


@scenes.add(container={"MOE_POD_INIT": "none", "MOE_POD_TICK": "0.3"})
def watchdog_never_gives_up(study):
    """RunPod's API refuses, and the container cannot be stopped from the inside."""
    pod = leave_alone(study, MOE_POD_STALL="8")
    study.emulator.fail("DELETE", "/v2/pods/.*", "500", times=4)
    study.wait(lambda: not study.emulator.alive(), what="the pod goes on")
    answers = [call.status for call in study.emulator.calls if call.method == "DELETE" and pod.id in call.path]
    assert answers == [500] * 4 + [204], answers


# --- the whole ---


@scenes.add()
def sweep_of_three(study):
    names = ["demo", *pod_study.SHAPES]
    seen = []

    def observe(moment, method, path):
        seen.append(len(study.emulator.pods))
        study.assert_all_known()

    study.emulator.observe = observe
    output = study.call("sweep", *(f"configs/{name}.cfg" for name in names), "--parallel", "3")
    assert max(seen) == 3
    study.assert_done(*names)
    billed = study.emulator.billed()
    status = study.json("status")
    assert close(sum(run["cost"] for run in status["runs"]), billed, 3), (status, billed)
    for name in names:
        assert re.search(rf"\b{name}\b", output)
    # Again: everything is there, and nothing costs anything.
    calls = len(study.emulator.calls)
    study.call("sweep", *(f"configs/{name}.cfg" for name in names), "--parallel", "3")
    assert not [call for call in study.emulator.calls[calls:] if call.method in MUTATING]


@scenes.add()
def pods_of_one_volume(study):
    """Each has its own watchdog and its own place, at the same time and one after the other."""
    study.hold.touch()
    configs = [f"configs/{name}.cfg" for name in pod_study.SHAPES]
    with study.running("sweep", *configs, "--parallel", "2", MOE_POD_VOLUME=study.emulator.add_volume()) as process:

        def watched():
            pods = [each for each in study.emulator.pods.values() if each.host]
            return len(pods) == 2 and all((pod_study.folder_of(pod) / "runs").exists() for pod in pods) and pods

        pods = study.wait(watched, what="no two pods")
        assert len({pod_study.folder_of(pod) for pod in pods}) == 2
        assert len({pod.host.session["MOE_POD_REMOTE_DIR"] for pod in pods}) == 1
        for pod in pods:
            study.wait((pod_study.folder_of(pod) / "watchdog.lock").exists, what="a pod has no watchdog")
        study.hold.unlink()
        study.finish(process)
    study.assert_done(*pod_study.SHAPES)


@scenes.add()
def only_what_git_tracks_is_sent(study):
    with study.held("run", CONFIG) as (process, pod):
        source = pod_study.folder_of(pod) / "source"
        assert (source / CONFIG).is_file() and (source / "models" / MODEL / "config.json").is_file()
        assert not (source / "not tracked.bin").exists() and not (source / ".env").exists()
        study.hold.unlink()
        study.finish(process)
    study.assert_done(MODEL)


@scenes.add()
def interrupted_and_continued(study):
    """Ctrl-C leaves the pod, says so with its price and how to end it; the same command goes on."""
    with study.held("run", CONFIG) as (process, pod):
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert re.search(rf"{pod.id}.*\$.*moe-pod terminate {pod.id}", output), output
    assert study.emulator.alive() == [pod.id]
    listed = study.json("list")
    assert [entry["id"] for entry in listed["pods"]] == [pod.id]
    output = study.call("cleanup", "--yes")
    assert study.emulator.alive() == [pod.id], "its deadline has not come: " + output
    study.hold.unlink()
    study.call("run", CONFIG)
    assert len(study.emulator.history) == 1
    study.assert_done(MODEL)


@scenes.add()
def logs_status_and_fetch(study):
    """A client that is gone is no harm: the run goes on, others look at it, and bring its result."""
    with study.held("run", CONFIG) as (process, pod):
        status = study.json("status")
        (run,) = status["runs"]
        assert run["name"] == MODEL or run["key"] == MODEL
        process.kill()
        process.wait()
        with study.running("logs", MODEL, "-f") as follower:  # holds nothing, and ends with the run
            study.hold.unlink()
            output = study.finish(follower)
            assert "layer" in output, output
    result = pod_study.folder_of(pod) / "source" / "results" / f"{MODEL}.h5"
    study.wait(result.exists)
    assert "layer" in study.call("logs", MODEL)
    study.call("fetch", MODEL)
    study.assert_same(MODEL)
    study.call("run", CONFIG)
    study.assert_done(MODEL)


@scenes.add()
def second_client_of_a_folder_is_refused(study):
    """Two would make two pods of a model."""
    with study.held("run", CONFIG) as (process, pod):
        output = study.call("sweep", "configs/demo.cfg", status=2)
        assert re.search(r"^moe-pod: error: .*another moe-pod", output, re.MULTILINE), output
        assert study.emulator.alive() == [pod.id]
        study.hold.unlink()
        study.finish(process)
    study.assert_done(MODEL)


# What brings a model to the pod: here, the one that is on this machine. It has the token, and no other way to say so.
FETCH = """#!/bin/bash
[[ $(printf %s "$HF_TOKEN" | sha256sum) == {hash}* ]] && touch {seen}
unset HF_TOKEN
mkdir -p models && cp -r {model} models/elsewhere
"""


@scenes.add()
def model_is_fetched_on_the_pod(study):
    study.change_config(MODEL, f"models/{MODEL}", "models/elsewhere")
    shutil.copy(study.folder / "models" / MODEL / "config.json", study.folder / "configs" / "elsewhere.json")
    study.change_config(MODEL, 'models/elsewhere"', 'models/elsewhere"; config = "configs/elsewhere.json"')
    script = study.folder / "scripts" / "fetch"
    script.unlink(missing_ok=True)
    model, seen = study.repository.folder / "models" / MODEL, study.hold.with_name("token was there")
    digest = hashlib.sha256(study.account.token.encode()).hexdigest()
    script.write_text(FETCH.format(hash=digest, model=shlex.quote(str(model)), seen=shlex.quote(str(seen))))
    script.chmod(0o755)
    subprocess.run(["git", "add", "."], cwd=study.folder, check=True, stdin=subprocess.DEVNULL)
    study.call("run", CONFIG)
    assert seen.exists()
    found = helpers.contents(
        study.folder / "results" / f"{MODEL}.h5", but=pod_study.OF_THE_RUN | {"model", "model_path"}
    )
    expected = study.repository.local[MODEL]
    assert {name: value for name, value in found.items() if "@" not in name} == {
        name: value for name, value in expected.items() if "@" not in name
    }
    study.assert_nothing_left()


# --- commands that change nothing ---


@scenes.add()
def catalog_plan_and_dry_run(study):
    gpus = study.json("gpus")
    assert len(gpus["gpus"] if isinstance(gpus, dict) else gpus) >= 12
    assert "NVIDIA H200" in study.call("gpus")
    plan = study.json("plan", CONFIG)
    assert pod_study.GPU in str(plan)
    study.call("plan", CONFIG)
    study.call("sweep", CONFIG, "configs/demo.cfg", "--dry-run")
    study.call("run", CONFIG, "--dry-run")
    study.call("list")
    study.call("status")
    assert not [call for call in study.emulator.calls if call.method in MUTATING]
    assert not study.emulator.history and not list(study.folder.glob("results/*"))


@scenes.add()
def wrong_key_and_no_key(study):
    output = study.call("list", status=2, RUNPOD_API_KEY="rpa_WRONG_KEY_123")
    assert "RUNPOD_API_KEY" in output, output
    environment = dict(study.environment)
    del environment["RUNPOD_API_KEY"]
    done = subprocess.run(
        [pod_study.program(), "list"], cwd=study.folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "RUNPOD_API_KEY" in done.stderr and ".env" in done.stderr
    (study.folder / ".env").write_text(f'export RUNPOD_API_KEY="{study.account.key}" # mine\n')
    done = subprocess.run(
        [pod_study.program(), "list"], cwd=study.folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (study.folder / ".env").unlink()


@scenes.add()
def ssh_key_that_the_account_lacks(study):
    study.emulator.ssh_keys = []
    output = study.call("run", CONFIG, status=2)
    assert study.account.public_key.split()[1] in output or "id_ed25519.pub" in output, output
    assert not study.emulator.history


# --- what others have, and what was forgotten ---


@scenes.add()
def cleanup_ends_what_is_forgotten(study):
    """Pods and clusters with the project's prefix that no run of the ledger has; nothing else."""
    emulator = study.emulator
    common = {"image": "an/image", "startSsh": True, "ports": ["22/tcp"]}
    with emulator.lock:
        for name in ("moe-outliers-olmoe_a-1a2b3c", "somebody-elses"):
            emulator.createPod({}, {}, common | {"name": name, "gpu": {"id": pod_study.GPU, "count": 1}})
        for name in ("moe-outliers-mixtral_a-4d5e6f", "not-ours"):
            compute = {"gpuTypeId": "NVIDIA H200", "gpuCountPerPod": 8, "podCount": 2}
            emulator.createCluster({}, {}, common | {"name": name, "type": "TRAINING", "compute": compute})
    output = study.call("list")
    assert len(emulator.alive()) == 8 and "moe-outliers-olmoe_a-1a2b3c" in output
    study.call("cleanup", "--yes")
    (pod,) = [pod for pod in emulator.pods.values() if not pod.cluster]
    (cluster,) = emulator.clusters.values()
    assert (pod.name, cluster.name) == ("somebody-elses", "not-ours")
    study.call("terminate", "no-such-pod-id", status=2)
    assert len(emulator.alive()) == 4


# --- clusters ---


def want_two_machines(study):
    """A config with more GPUs than a machine has: one."""
    emulator = study.emulator
    for name, gpu in emulator.gpus.items():
        emulator.gpus[name] = gpu._replace(most=(1, 1))
    study.change_config(MODEL, "gpus = 1;", "gpus = 2;")


@scenes.add()
def cluster_of_two(study):
    want_two_machines(study)
    study.call("run", CONFIG, MOE_POD_VOLUME=study.emulator.add_volume())
    (cluster,) = study.emulator.cluster_history
    assert cluster.request["type"] == "TRAINING" and len(cluster.pods) == 2
    assert "args" not in cluster.request, "its members would end themselves, as they have no watchdog"
    study.assert_done(MODEL)
    status = study.json("status")
    assert close(sum(run["cost"] for run in status["runs"]), study.emulator.billed(), 2), status


@scenes.add()
def cluster_without_a_common_folder(study):
    """Each machine has its own copy of everything."""
    want_two_machines(study)
    study.call("run", CONFIG)
    assert len(study.emulator.cluster_history) == 1
    study.assert_done(MODEL)


@scenes.add()
def cluster_with_slurm(study):
    """The cluster's own Slurm, a real one, whose nodes are this machine."""
    if slurm_cluster.missing():
        pytest.skip(f"no Slurm here: {slurm_cluster.missing()}")
    want_two_machines(study)
    with slurm_cluster.Cluster() as slurm:
        study.emulator.session |= slurm.environment
        study.call("run", CONFIG, "--slurm", MOE_POD_VOLUME=study.emulator.add_volume())
        (cluster,) = study.emulator.cluster_history
        assert cluster.request["type"] == "SLURM"
        study.assert_done(MODEL)


@pytest.mark.parametrize("name", scenes.functions)
def test_scene(started, name):
    started[0][name].result()


def test_secrets_are_in_no_process(started):
    """All the time that the scenes took."""
    futures, watch = started
    concurrent.futures.wait(futures.values())
    assert not watch.leaks and (watch.looks > 5 or not futures)


# --- the emulator itself: what would be refused there is refused here ---


def ask(emulator, method, path, body=None, key=None):
    """(status, JSON) of a call."""
    headers = {"Authorization": f"Bearer {key or emulator.key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(emulator.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_emulator_is_strict(tmp_path):
    pod = {"name": "a pod", "image": "an/image", "gpu": {"id": pod_study.GPU, "count": 1}, "ports": ["22/tcp"]}
    compute = {"gpuTypeId": "NVIDIA H200", "gpuCountPerPod": 8, "podCount": 2}
    cluster = {"name": "a cluster", "type": "TRAINING", "image": "an/image", "compute": compute}
    with runpod_emulator.Emulator(tmp_path, "rpa_1234567890", []) as emulator:
        for status, method, path, body in (
            (422, "GET", "/v2/pods?unknown=1", None),
            (422, "GET", "/v2/pods?includeClusterPods=yes", None),
            (400, "GET", "/v2/catalog/gpus?include=AVAILABILITY", None),
            (422, "POST", "/v2/pods", pod | {"gpuCount": 1}),
            (422, "POST", "/v2/pods", pod | {"gpu": {"id": pod_study.GPU, "count": "1"}}),
            (422, "POST", "/v2/pods", {name: value for name, value in pod.items() if name != "image"}),
            (422, "POST", "/v2/pods", pod | {"env": {"A": 1}}),
            (400, "POST", "/v2/pods", {name: value for name, value in pod.items() if name != "gpu"}),
            (400, "POST", "/v2/pods", pod | {"gpu": {"id": pod_study.GPU, "count": 99}}),
            (400, "POST", "/v2/pods", pod | {"gpu": {"id": "NVIDIA H100 NVL"}}),
            (422, "POST", "/v2/clusters", cluster | {"registry": "mine"}),
            (422, "POST", "/v2/clusters", cluster | {"compute": compute | {"podCount": 1}}),
            (404, "GET", "/v2/pods/none", None),
            (404, "DELETE", "/v2/clusters/none", None),
            (405, "PUT", "/v2/pods", None),
            (404, "GET", "/v1/pods", None),
        ):
            found, error = ask(emulator, method, path, body)
            assert found == status == error["status"] and error["title"] and error["detail"], (
                method,
                path,
                body,
                found,
            )
        assert ask(emulator, "GET", "/v2/pods", key="another")[0] == 401
        assert not emulator.history

        status, made = ask(emulator, "POST", "/v2/pods", pod)
        assert status == 201 and made["status"] == "PROVISIONING" and made["ssh"]["direct"] is None
        status, group = ask(emulator, "POST", "/v2/clusters", cluster)
        assert status == 201 and group["pods"]["total"] == 2 and "primary" not in group
        assert [each["id"] for each in ask(emulator, "GET", "/v2/pods")[1]["pods"]] == [made["id"]]
        assert len(ask(emulator, "GET", "/v2/pods?includeClusterPods=true")[1]["pods"]) == 3
        members = ask(emulator, "GET", f"/v2/clusters/{group['id']}/pods")[1]["pods"]
        assert ask(emulator, "DELETE", f"/v2/pods/{members[1]['id']}")[0] == 409
        scoped = emulator.pods[made["id"]].key
        assert ask(emulator, "GET", "/v2/pods", key=scoped)[0] == 403
        assert ask(emulator, "DELETE", f"/v2/pods/{members[1]['id']}", key=scoped)[0] == 403
        assert ask(emulator, "DELETE", f"/v2/pods/{made['id']}", key=scoped) == (204, None)
        assert ask(emulator, "GET", f"/v2/pods/{made['id']}")[0] == 404
        assert ask(emulator, "DELETE", f"/v2/clusters/{group['id']}") == (204, None)
        assert ask(emulator, "GET", f"/v2/pods/{members[1]['id']}")[0] == 404
        for what in ("pods", "clusters"):
            bill = ask(emulator, "GET", f"/v2/billing/{what}")[1]
            assert bill["metadata"]["recordCount"] == 1 and bill["metadata"]["totals"]["totalAmount"] > 0
        assert not emulator.alive() and not emulator.errors


# --- a laptop ---


def test_needs_only_libcurl_and_jansson():
    found = subprocess.run(["ldd", pod_study.program()], capture_output=True, text=True, check=True).stdout
    for library in ("libmpi", "libhdf5", "libcuda", "libcudart", "libopenblas", "libblas", "libnccl"):
        assert library not in found
    assert "libcurl" in found and "libjansson" in found


def test_builds_alone(tmp_path):
    """On a machine where pkg-config knows of nothing but these two, and there is no mpicc."""
    known = tmp_path / "pkgconfig"
    known.mkdir()
    folders = subprocess.run(["pkg-config", "--variable=pc_path", "pkg-config"], capture_output=True, text=True)
    for folder in folders.stdout.strip().split(":"):
        for name in ("libcurl", "jansson"):
            path = os.path.join(folder, f"{name}.pc")
            if os.path.exists(path):
                shutil.copy(path, known)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in (
        "cc",
        "gcc",
        "cmake",
        "ninja",
        "make",
        "pkg-config",
        "git",
        "as",
        "ld",
        "ar",
        "ranlib",
        "uname",
        "sed",
        "sh",
    ):
        path = shutil.which(name)
        if path:
            (tools / name).symlink_to(path)
    environment = {"PATH": str(tools), "HOME": str(tmp_path), "PKG_CONFIG_LIBDIR": str(known)}
    configure = ["cmake", "-S", helpers.ROOT, "-B", tmp_path / "build", "-DMO_PROGRAMS=moe-pod", "-DBUILD_TESTING=OFF"]
    for command in ([*configure, "-DCMAKE_BUILD_TYPE=Debug"], ["cmake", "--build", tmp_path / "build"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    alone = tmp_path / "build" / "moe-pod"
    found = subprocess.run(["ldd", alone], capture_output=True, text=True, check=True).stdout
    assert "libconfig" not in found
    # It reads configs by itself, as the whole build does with libconfig.
    with runpod_emulator.Emulator(tmp_path / "pods", "rpa_1234567890", []) as emulator:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RUNPOD_API_KEY": emulator.key}
        environment["MOE_POD_API"] = emulator.url
        configs = [path for path in sorted((helpers.ROOT / "configs").glob("*.cfg")) if path.stem != "common"]
        plans = [
            subprocess.run(
                [each, "plan", *configs, "--json"], cwd=helpers.ROOT, env=environment, capture_output=True, text=True
            )
            for each in (alone, pod_study.program())
        ]
    assert [plan.returncode for plan in plans] == [0, 0], plans
    assert plans[0].stdout == plans[1].stdout and "glm" in plans[0].stdout
