"""The scripts of slurm/ on a real Slurm that the test starts: the array, the launchers, what interrupts it, status and report."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import time
import typing

import pytest

import helpers
import interrupted
import processes
import slurm_cluster

pytestmark = [
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=f"no Slurm here: {slurm_cluster.missing()}"),
    pytest.mark.skipif(os.environ.get("MO_SANITIZE") == "1", reason="tests scripts, by runs that differ in nothing"),
]

SLURM = helpers.ROOT / "slurm"
SHAPES = ("olmoe_a", "mixtral_a", "qwen3_moe_a", "qwen3_next_a", "glm4_moe_a", "gpt_oss_a")
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# Not by shared memory: its files are named by ranks on a node, and the two nodes are one machine.
OPEN_MPI = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"}


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster.Cluster() as running:
        yield running


class Study:
    """A folder that is not the repository, whose path has blanks, with configs and a site's file."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.folder = folder / "my study"
        self.configs = self.folder / "the configs"
        self.configs.mkdir(parents=True)
        self.site()

    def site(self, **values):
        """Write the site's file; values are Bash."""
        lines = [f'PROGRAM=("{helpers.program()}")', *(f"{name}={value}" for name, value in values.items())]
        (self.folder / "my site.conf").write_text("\n".join(lines) + "\n")

    def add(self, name, sections):
        helpers.write_config(self.configs / f"{name}.cfg", sections)

    def call(self, *argv, check=True, **more):
        variables = OPEN_MPI | {"SWEEP": "the configs/*.cfg", "MO_SITE": str(self.folder / "my site.conf")} | more
        return self.cluster.run(*argv, check=check, cwd=self.folder, **variables)

    def submit(self, *argv):
        """slurm/submit without the report; ids of the jobs."""
        done = self.call(SLURM / "submit", "--no-report", *argv)
        return re.findall(r"job (\d+_\d+)$", done.stderr, re.MULTILINE)

    def sbatch(self, *argv):
        """sbatch of slurm/sweep.sbatch; the array's id."""
        return self.call("sbatch", "--parsable", *argv, SLURM / "sweep.sbatch").stdout.strip()

    def log(self, name):
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def status(self):
        """{name: (state, the rest)} of slurm/status."""
        lines = self.call(SLURM / "status").stdout.splitlines()
        return {name: (state, *rest) for name, state, *rest in (line.split(None, 2) for line in lines)}

    def state(self, job):
        return self.cluster.job(job).get("JobState", "")

    def wait_for_end(self, job, seconds=60):
        """State of a task when it is at its end."""
        try:
            return self.cluster.wait(lambda: (state := self.state(job)) in ENDS and state, seconds)
        except AssertionError as error:
            raise AssertionError(f"job {job} is {self.state(job)}\n{self.all_logs()}\n{error}") from None

    def all_logs(self):
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')}" for path in self.folder.rglob("*.log"))

    def wait_for_log(self, name, pattern, seconds=60, times=1):
        def said():
            return len(re.findall(pattern, self.log(name), re.MULTILINE)) >= times

        self.cluster.wait(said, seconds, f"nothing like {pattern} in:\n{self.all_logs()}")


def sections(model, output, sequences=2, length=24, **more):
    return {
        "model": model,
        "data": {"tokens": "synthetic:3", "sequences": sequences, "length": length},
        "analysis": {"threshold": 2.5, "bootstrap": 100},
        "engine": {"device": "cpu", "precision": "fp32", "micro_batch": 1},
        "output": {"path": output},
    } | more


def add_small_models(study, outputs):
    """The demo and a random checkpoint of each architecture, results in that folder; their names."""
    demo = {"tokens": helpers.ROOT / "demo" / "tokens.h5", "sequences": 4, "length": 64}
    study.add("0_demo", sections({"path": helpers.ROOT / "demo"}, f"{outputs}/0_demo.h5", data=demo))
    for number, shape in enumerate(SHAPES, 1):
        model = {"path": study.folder / "models" / shape}
        study.add(f"{number}_{shape}", sections(model, f"{outputs}/{number}_{shape}.h5"))
    return sorted(path.stem for path in study.configs.glob("*.cfg"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of the random checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    for shape in SHAPES:
        shapes = helpers.REFERENCES / shape / "config.json"
        helpers.run(["synth", shapes, "-o", folder / shape, "--seed", "5"], env=helpers.quick())
    return folder


def contents(path):
    return helpers.contents(path, but=interrupted.OF_THE_RUN)


@pytest.fixture(scope="module")
def by_mpirun(cluster, models, tmp_path_factory):
    """{name: contents} of the results of mpirun outside of Slurm."""
    study = Study(cluster, tmp_path_factory.mktemp("plain"))
    (study.folder / "models").symlink_to(models)
    names = add_small_models(study, study.folder / "plain")
    (study.folder / "plain").mkdir()
    for name in names:
        helpers.run(["run", study.configs / f"{name}.cfg"], 2, env=helpers.quick(2))
    return {name: contents(study.folder / "plain" / f"{name}.h5") for name in names}


class Expected(typing.NamedTuple):
    models: pathlib.Path  # folder of the random checkpoints
    by_mpirun: dict  # {name: contents} of their results
    unbroken: dict  # contents of the long run's result


# --- a run of some seconds that saves all the time ---

LONG = {"sequences": 24, "length": 256}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Contents of the result of the long run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    helpers.run(["run", interrupted.config(folder, data=LONG)], 2, env=helpers.quick(2))
    return interrupted.contents(folder / "r.h5")


def add_long(study):
    interrupted.config(study.folder, data=LONG).rename(study.configs / "long.cfg")


def start(study, *options):
    """Job of the array's one task, which has saved something; its ranks are halted."""
    job = study.sbatch("--array=1", *options) + "_1"
    study.cluster.wait(lambda: len(interrupted.records(study.folder)) >= 4, 100, "nothing is saved")
    send(signal.SIGSTOP, ranks_of(study))
    return job


def send(number, pids):
    for pid in pids:
        os.kill(pid, number)


def ranks_of(study):
    """Pids of the ranks of this study's runs, by rank."""
    found = {}
    for pid in study.cluster.processes():
        command = processes.command(pid)
        rank = processes.variable(pid, "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
        if rank and command[0].endswith(b"moe-outliers") and str(study.configs).encode() in b"".join(command):
            found[int(rank)] = pid
    return [pid for _, pid in sorted(found.items())]


def has_pending(pid, number):
    masks = re.findall(r"^(?:SigPnd|ShdPnd):\s+(\w+)", open(f"/proc/{pid}/status").read(), re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def tell_to_stop(study, job):
    """As Slurm does ahead of a limit. The ranks go on when all know it."""
    ranks = ranks_of(study)
    study.call("scancel", "--batch", "--signal=USR1", job)
    study.cluster.wait(lambda: all(has_pending(pid, signal.SIGUSR1) for pid in ranks), 20, "no signal")
    send(signal.SIGCONT, ranks)


def assert_continued(study, job, expected):
    """The task comes to its end in a later start, which keeps what was done, with the same result."""
    assert study.wait_for_end(job, 120) == "COMPLETED", study.log("long")
    log = study.log("long")
    assert "slurm: job " + job + ", start 2, on " in log and "continuing from" in log
    interrupted.assert_finished(study.folder, expected)
    assert study.status()["long"][0] == "done"


def assert_finished_by_a_new_job(study, expected):
    job = study.sbatch("--array=1", "--ntasks=2") + "_1"
    assert study.wait_for_end(job, 120) == "COMPLETED", study.log("long")
    interrupted.assert_finished(study.folder, expected)


# --- scenes: what a task goes through. They mostly wait for Slurm, so all are started at once. ---

SCENES = {}


def scene(function):
    """A function of a study and the expected results, which is a test."""
    SCENES[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def scenes(request, cluster, models, by_mpirun, unbroken, tmp_path_factory):
    """{name: future} of the scenes that are asked for."""
    names = [item.callspec.params["name"] for item in request.session.items if item.name.startswith("test_scene[")]
    expected = Expected(models, by_mpirun, unbroken)
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        yield {
            name: pool.submit(SCENES[name], Study(cluster, tmp_path_factory.mktemp(name)), expected) for name in names
        }


# The limit is a minute, the least that there is; Slurm looks at it twice a minute. Hence the first to start.
@scene
def time_limit(study, expected):
    add_long(study)
    job = start(study, "--ntasks=2", "--time=1", "--signal=B:USR1@45")
    first, last = ranks_of(study)
    send(signal.SIGCONT, [last])  # which tells how far all are, and waits for the other one
    running = study.cluster.wait(lambda: "ETA" in (line := study.status()["long"])[1] and line, 40)
    assert running[0] == "running"
    assert re.match(job + r": layer \d/8, \d+ %, [\d.]+ GB/s, ETA (> )?[\d.]+ (s|min|h)$", running[1])
    study.wait_for_log("long", "^slurm: told to stop: saving$", 70)
    study.cluster.wait(lambda: has_pending(first, signal.SIGUSR1), 20, "no signal")
    send(signal.SIGCONT, [first])
    assert_continued(study, job, expected.unbroken)


def array_equals_mpirun(study, expected, launcher, said, ranks, *options):
    (study.folder / "models").symlink_to(expected.models)
    names = add_small_models(study, "the results")
    study.site(LAUNCHER=launcher)
    array = study.sbatch(f"--ntasks={ranks}", "--array=1-7%1", *options)
    for number, name in enumerate(names, 1):
        assert study.wait_for_end(f"{array}_{number}", 120) == "COMPLETED", study.all_logs()
        assert f"slurm: {ranks} rank(s) by {said}\n" in study.log(name)
        helpers.assert_same(contents(study.folder / "the results" / f"{name}.h5"), expected.by_mpirun[name])
    assert {state for state, *_ in study.status().values()} == {"done"}


@scene
def array_of_4_ranks_on_2_nodes_by_srun(study, expected):
    array_equals_mpirun(study, expected, "srun", "srun --mpi=pmix", 4, "--nodes=2")


@scene
def array_of_2_ranks_by_srun(study, expected):
    array_equals_mpirun(study, expected, "srun", "srun --mpi=pmix", 2, "--nodes=1")


@scene
def array_of_4_ranks_by_mpirun(study, expected):
    array_equals_mpirun(study, expected, "mpirun", "mpirun", 4, "--nodes=1")


@scene
def array_of_2_ranks_by_mpirun(study, expected):
    array_equals_mpirun(study, expected, "mpirun", "mpirun", 2, "--nodes=1")


@scene
def signal_ahead_saves_requeues_and_continues(study, expected):
    add_long(study)
    job = start(study, "--ntasks=2")
    tell_to_stop(study, job)
    study.wait_for_log("long", "^slurm: ended: stopped, back into the queue$")
    study.cluster.wait(lambda: study.state(job) == "PENDING", 20)
    assert study.status()["long"][0] in ("queued", "running")  # it may have started meanwhile
    assert_continued(study, job, expected.unbroken)


@scene
def signal_ahead_under_mpirun(study, expected):
    add_long(study)
    study.site(LAUNCHER="mpirun")
    job = start(study, "--ntasks=2")
    tell_to_stop(study, job)
    assert_continued(study, job, expected.unbroken)


@scene
def scontrol_requeue(study, expected):
    add_long(study)
    job = start(study, "--ntasks=2")
    study.call("scontrol", "requeue", job)
    assert_continued(study, job, expected.unbroken)


@scene
def requeues_have_a_limit(study, expected):
    add_long(study)
    study.site(MAX_REQUEUES=0)
    job = start(study, "--ntasks=2")
    tell_to_stop(study, job)
    assert study.wait_for_end(job) == "FAILED"
    assert "failed: stopped and started again 0 times (MAX_REQUEUES" in study.status()["long"][1]


@scene
def scancel_ends_it_and_a_new_job_continues(study, expected):
    add_long(study)
    job = start(study, "--ntasks=2")
    study.call("scancel", job)
    assert study.wait_for_end(job) == "CANCELLED"
    study.cluster.wait(lambda: not ranks_of(study), 20)
    time.sleep(0.5)
    assert study.state(job) == "CANCELLED"
    state, why = study.status()["long"]
    assert state == "failed" and "CANCELLED" in why
    assert_finished_by_a_new_job(study, expected.unbroken)


@scene
def killed_rank_is_a_failure_that_does_not_loop(study, expected):
    add_long(study)
    job = start(study, "--ntasks=2")
    first, second = ranks_of(study)
    send(signal.SIGKILL, [first])
    send(signal.SIGCONT, [second])
    assert study.wait_for_end(job) == "FAILED"
    assert "start 2" not in study.log("long")
    assert study.status()["long"][0] == "failed"
    assert_finished_by_a_new_job(study, expected.unbroken)


@scene
def killed_step_daemon_is_a_failure_that_srun_does_not_notice(study, expected):
    add_long(study)
    study.site(WATCH_SECONDS=1)
    job = start(study, "--ntasks=2")
    ranks = ranks_of(study)
    status = open(f"/proc/{ranks[0]}/status").read()
    send(signal.SIGKILL, [int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)[1])])
    send(signal.SIGCONT, ranks)
    assert study.wait_for_end(job) == "FAILED"
    state, why = study.status()["long"]
    assert state == "failed" and "Slurm's daemon of the run is gone" in why
    study.cluster.wait(lambda: not ranks_of(study), 20, "its ranks do not end")
    assert_finished_by_a_new_job(study, expected.unbroken)


@scene
def srun_without_mpi_falls_back_to_mpirun(study, expected):
    add_long(study)
    study.site(SRUN_MPI="none")
    assert_finished_by_a_new_job(study, expected.unbroken)
    said = "2 rank(s) by mpirun; srun --mpi=none starts 2 times rank 0 of 1 (the program's MPI does not know it)\n"
    assert "slurm: " + said in study.log("long")


@scene
def singletons_are_never_run(study, expected):
    add_long(study)
    study.site(SRUN_MPI="none", LAUNCHER="srun")
    job = study.sbatch("--array=1", "--ntasks=2") + "_1"
    assert study.wait_for_end(job) == "FAILED"
    state, error = study.status()["long"]
    assert state == "failed"
    assert "no launcher starts 2 ranks that see each other: srun --mpi=none starts 2 times" in error
    assert not list(study.folder.glob("r.h5*"))


@scene
def submit_status_report(study, expected):
    models = expected.models
    (study.folder / "models").symlink_to(models)
    demo = {"tokens": helpers.ROOT / "demo" / "tokens.h5", "sequences": 4, "length": 64}
    study.add("1_demo", sections({"path": helpers.ROOT / "demo"}, "results/demo.h5", data=demo))
    study.add("2_olmoe", sections({"path": "models/olmoe_a"}, "results/olmoe.h5"))
    absent = {"path": "models/absent", "config": models / "olmoe_a" / "config.json"}
    study.add("3_broken", sections(absent, "results/no.h5"))
    study.add("4_later", sections({"path": "models/olmoe_a"}, "results/later.h5"))
    lines = study.call(SLURM / "submit", "--dry-run").stdout.splitlines()
    assert len(lines) == 5 and all("gpu" not in line and "gres" not in line for line in lines)
    assert "dependency=afterany:JOB:JOB" in lines[-1] and not (study.folder / "logs").exists()
    done = study.call(SLURM / "submit", "1", "2,3", "--", "-s", "analysis.threshold=2.0")
    jobs = re.findall(r": job (\d+)", done.stderr)
    assert len(jobs) == 4
    assert study.wait_for_end(jobs[3], 120) == "COMPLETED", study.all_logs()
    status = study.status()
    assert status["1_demo"][0] == "done" and "outlier feature" in status["1_demo"][1]
    assert status["3_broken"][0] == "failed" and "models/absent" in status["3_broken"][1]
    assert status["4_later"] == ("-", "not started from here")
    table = (study.folder / "report" / "models.md").read_text()
    assert "demo" in table and "olmoe_a" in table
    assert "3_broken" in (study.folder / "report" / "status.txt").read_text()
    assert helpers.datasets(study.folder / "results" / "olmoe.h5")  # and it is done, not run again
    again = study.call(SLURM / "submit", "--no-report", "1", "2", "--", "-s", "analysis.threshold=2.0")
    assert again.stderr.count("done before") == 2
    other = study.call(SLURM / "submit", "--no-report", "1", check=False)
    assert other.returncode == 2 and "was made with analysis.threshold = 2.0, not 2.5" in other.stderr


@scene
def submit_refuses_what_no_partition_can_hold(study, expected):
    shape = json.loads((helpers.ROOT / "configs" / "models" / "mixtral-8x7b.json").read_text())
    (study.folder / "large.json").write_text(json.dumps(shape | {"hidden_size": 16384}))
    study.add("large", sections({"path": "synthetic:1", "config": study.folder / "large.json"}, "large.h5"))
    done = study.call(SLURM / "submit", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert re.match(r"slurm: 1 large: not submitted, no partition can hold it: all: .*; small: ", done.stderr)


@scene
def command_lines_that_are_wrong(study, expected):
    """Each is refused with one line, and nothing is submitted; the report asks for no more time than its partition allows."""
    study.add("model", sections({"path": expected.models / "olmoe_a"}, "r.h5"))
    for script, arguments, text in (
        ("submit", [","], "a number is missing between commas"),
        ("submit", ["2"], "no model 2: the sweep has 1"),
        ("status", ["3"], "no such config (3)"),
        ("status", ["--nope"], "unknown option --nope"),
    ):
        done = study.call(SLURM / script, *arguments, check=False)
        assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done
        assert text in done.stderr
    study.site(PARTITION="small")
    lines = study.call(SLURM / "submit", "--dry-run").stdout.splitlines()
    assert len(lines) == 2 and "--time=10 " in lines[1] and "report.sbatch" in lines[1]
    study.site(ACCOUNT='"me')
    done = study.call(SLURM / "submit", check=False)
    assert done.returncode == 2 and "is no valid bash" in done.stderr and done.stdout == ""


def asked_for(study, **site):
    """The options about GPUs of the line by which slurm/submit asks, which Slurm would take."""
    study.site(**site)
    line = study.call(SLURM / "submit", "--no-report", "--dry-run").stdout
    study.cluster.run("bash", "-c", line.replace("sbatch ", "sbatch --test-only ", 1), cwd=study.folder)
    return re.findall(r"--(?:gres|gpus|exclusive)\S*", line)


def gpus_of_ranks(study, **site):
    """What CUDA_VISIBLE_DEVICES says in each rank of a run that slurm/submit has started."""
    shutil.rmtree(study.folder / "ranks", ignore_errors=True)
    (study.folder / "ranks").mkdir()
    (study.folder / "r.h5").unlink(missing_ok=True)
    study.site(RANK_PROGRAM=f'("{study.folder / "rank"}")', **site)
    assert study.wait_for_end(study.submit()[0]) == "COMPLETED", study.all_logs()
    return {path.name: path.read_text().strip() for path in (study.folder / "ranks").iterdir()}


# The GPUs are names only, and the ranks are told to compute without.
ON_NO_GPU = """#!/usr/bin/env bash
if [[ $1 != run ]]; then exec "{program}" "$@"; fi
echo "$CUDA_VISIBLE_DEVICES" >"{folder}/ranks/$SLURM_PROCID"
exec "{program}" "$@" -s engine.device=cpu -s engine.precision=fp32
"""


@scene
def gpus_are_asked_for_as_the_site_wants(study, expected):
    with slurm_cluster.Cluster(gpus=2) as with_gpus:
        study.cluster = with_gpus
        shutil.copy(helpers.REFERENCES / "olmoe_a" / "config.json", study.folder / "shape.json")
        study.add("model", {"model": {"path": "synthetic:1", "config": study.folder / "shape.json"},
                            "data": {"tokens": "synthetic:1", "sequences": 2, "length": 24},
                            "deployment": {"gpus": 1}, "output": {"path": "r.h5"}})
        assert asked_for(study, RANKS=1) == ["--gres=gpu:1"]
        assert asked_for(study, RANKS=1, GPU_REQUEST="gres:h100") == ["--gres=gpu:h100:1"]
        assert asked_for(study, RANKS=2, GPU_REQUEST="per-task") == ["--gpus-per-task=1"]
        assert asked_for(study, RANKS=4) == ["--gres=gpu:2"]  # of each of two nodes
        whole_node = {"GPU_REQUEST": "none", "GPU_MEMORY_GB": 80, "SBATCH_OPTIONS": "(--exclusive)"}
        assert asked_for(study, RANKS=2, **whole_node) == ["--exclusive"]
        program = study.folder / "rank"
        program.write_text(ON_NO_GPU.format(program=helpers.program(), folder=study.folder))
        program.chmod(0o755)
        assert gpus_of_ranks(study, RANKS=2) == {"0": "0,1", "1": "0,1"}
        assert gpus_of_ranks(study, RANKS=2, GPU_REQUEST="per-task") == {"0": "0", "1": "1"}
        (study.folder / "r.h5").unlink()
        study.site(GPU_MEMORY_GB="0.001")
        refused = study.call(SLURM / "submit", check=False)
        assert refused.returncode == 2 and "a memory budget of 0.001 GB per rank is too small" in refused.stderr
        study.site()
        job = study.sbatch("--array=1") + "_1"
        assert study.wait_for_end(job) == "FAILED"
        assert "the model's plan wants 1 GPU(s), but the job has none" in study.log("model")


@pytest.mark.parametrize("name", SCENES)
def test_scene(scenes, name):
    scenes[name].result()
