"""The scripts of slurm/ on a real Slurm that the test starts: the array, the launchers, what interrupts it, status and report."""

import json
import os
import re
import shutil
import signal
import time

import pytest

import helpers
import interrupted
import slurm_cluster

pytestmark = [
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=f"no Slurm here: {slurm_cluster.missing()}"),
    pytest.mark.skipif(os.environ.get("MO_SANITIZE") == "1", reason="tests scripts, by runs that differ in nothing"),
]

SLURM = helpers.ROOT / "slurm"
SHAPES = ("olmoe_a", "mixtral_a", "qwen3_moe_a", "qwen3_next_a", "glm4_moe_a", "gpt_oss_a")
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# The two nodes are one machine, where Open MPI's shared memory of one job may be in the way of another's.
OPEN_MPI = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"}


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


@pytest.fixture
def study(cluster, tmp_path):
    return Study(cluster, tmp_path)


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


LAUNCHES = [
    ("srun", 2, ["--ntasks=2", "--nodes=1"], "srun --mpi=pmix"),
    ("srun", 4, ["--ntasks=4", "--nodes=2"], "srun --mpi=pmix"),
    ("mpirun", 2, ["--ntasks=2", "--nodes=1"], "mpirun"),
    ("mpirun", 4, ["--ntasks=4", "--nodes=1"], "mpirun"),
]


@pytest.mark.parametrize("launcher, ranks, options, said", LAUNCHES)
def test_array_gives_what_mpirun_gives(study, models, by_mpirun, launcher, ranks, options, said):
    (study.folder / "models").symlink_to(models)
    names = add_small_models(study, "the results")
    study.site(LAUNCHER=launcher)
    array = study.sbatch(*options)
    for number, name in enumerate(names, 1):
        assert study.wait_for_end(f"{array}_{number}") == "COMPLETED", study.all_logs()
        assert f"slurm: {ranks} rank(s) by {said}\n" in study.log(name)
        helpers.assert_same(contents(study.folder / "the results" / f"{name}.h5"), by_mpirun[name])
    assert {state for state, *_ in study.status().values()} == {"done"}


# --- what interrupts a task ---

LONG = {"sequences": 16, "length": 256}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Contents of the result of the long run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    helpers.run(["run", interrupted.config(folder, data=LONG)], 2, env=helpers.quick(2))
    return interrupted.contents(folder / "r.h5")


@pytest.fixture
def long(study):
    """A study with one config of a run of some seconds that saves all the time."""
    config = interrupted.config(study.folder, data=LONG)
    config.rename(study.configs / "long.cfg")
    return study


def start(study, *options, layers=1):
    """Job of the array's one task, which runs and has done some layers."""
    job = study.sbatch("--array=1", *options) + "_1"
    study.wait_for_log("long", "^moe-outliers: layer", times=layers)
    return job


def assert_continued(study, job, expected):
    """The task comes to its end in a later start, which keeps what was done, with the same result."""
    assert study.wait_for_end(job, 100) == "COMPLETED", study.log("long")
    log = study.log("long")
    assert "slurm: job " + job + ", start 2, on " in log and "continuing from" in log
    interrupted.assert_finished(study.folder, expected)
    assert study.status()["long"][0] == "done"


def test_signal_ahead_saves_requeues_and_continues(long, unbroken):
    job = start(long, "--ntasks=2")
    running = long.status()["long"]
    assert running[0] == "running" and re.match(job + r": layer \d/8, \d+ %, [\d.]+ GB/s, ETA .*s$", running[1])
    long.call("scancel", "--batch", "--signal=USR1", job)
    long.wait_for_log("long", "^slurm: ended: stopped, back into the queue$")
    long.cluster.wait(lambda: long.state(job) == "PENDING", 20)
    assert long.status()["long"][0] == "queued"
    assert_continued(long, job, unbroken)


def test_signal_ahead_under_mpirun(long, unbroken):
    long.site(LAUNCHER="mpirun")
    job = start(long, "--ntasks=2")
    long.call("scancel", "--batch", "--signal=USR1", job)
    assert_continued(long, job, unbroken)


def test_scontrol_requeue(long, unbroken):
    job = start(long, "--ntasks=2")
    long.call("scontrol", "requeue", job)
    assert_continued(long, job, unbroken)


def ranks_of(study):
    """Pids of the ranks of this study's runs."""
    found = []
    for pid in study.cluster.processes():
        try:
            command = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
        except OSError:
            continue
        if command[0].endswith(b"moe-outliers") and str(study.configs).encode() in b"".join(command):
            found.append(pid)
    return found


def test_time_limit(long, unbroken):
    # The limit is a minute, the least that there is; Slurm looks at it twice a minute. The ranks sleep until then.
    job = start(long, "--ntasks=2", "--time=1", "--signal=B:USR1@45")
    for pid in ranks_of(long):
        os.kill(pid, signal.SIGSTOP)
    long.wait_for_log("long", "^slurm: told to stop: saving$", 70)
    for pid in ranks_of(long):
        os.kill(pid, signal.SIGCONT)
    assert_continued(long, job, unbroken)


def test_requeues_have_a_limit(long):
    long.site(MAX_REQUEUES=0)
    job = start(long, "--ntasks=2")
    long.call("scancel", "--batch", "--signal=USR1", job)
    assert long.wait_for_end(job) == "FAILED"
    assert "failed: stopped and started again 0 times (MAX_REQUEUES" in long.status()["long"][1]


def test_scancel_ends_it_and_a_new_job_continues(long, unbroken):
    job = start(long, "--ntasks=2")
    long.call("scancel", job)
    assert long.wait_for_end(job) == "CANCELLED"
    long.cluster.wait(lambda: not ranks_of(long), 20)
    time.sleep(0.5)
    assert long.state(job) == "CANCELLED"
    state, why = long.status()["long"]
    assert state == "failed" and "CANCELLED" in why
    again = long.sbatch("--array=1", "--ntasks=2") + "_1"
    assert long.wait_for_end(again) == "COMPLETED", long.log("long")
    interrupted.assert_finished(long.folder, unbroken)


def test_killed_rank_is_a_failure_that_does_not_loop(long, unbroken):
    job = start(long, "--ntasks=2")
    os.kill(ranks_of(long)[0], signal.SIGKILL)
    assert long.wait_for_end(job) == "FAILED"
    assert "start 2" not in long.log("long")
    assert long.status()["long"][0] == "failed"
    assert long.wait_for_end(long.sbatch("--array=1", "--ntasks=2") + "_1") == "COMPLETED", long.log("long")
    interrupted.assert_finished(long.folder, unbroken)


# --- launchers that cannot start MPI ---


def test_srun_without_mpi_falls_back_to_mpirun(long, unbroken):
    long.site(SRUN_MPI="none")
    job = long.sbatch("--array=1", "--ntasks=2") + "_1"
    assert long.wait_for_end(job) == "COMPLETED", long.log("long")
    said = "slurm: 2 rank(s) by mpirun; srun --mpi=none starts 2 times rank 0 of 1 (the program's MPI does not know it)\n"
    assert said in long.log("long")
    interrupted.assert_finished(long.folder, unbroken)


def test_singletons_are_never_run(long):
    long.site(SRUN_MPI="none", LAUNCHER="srun")
    job = long.sbatch("--array=1", "--ntasks=2") + "_1"
    assert long.wait_for_end(job) == "FAILED"
    state, error = long.status()["long"]
    assert state == "failed" and "no launcher starts 2 ranks that see each other: srun --mpi=none starts 2 times" in error
    assert not list(long.folder.glob("r.h5*"))


# --- submit, status and report ---


def test_submit_status_report(study, models):
    (study.folder / "models").symlink_to(models)
    demo = {"tokens": helpers.ROOT / "demo" / "tokens.h5", "sequences": 4, "length": 64}
    study.add("1_demo", sections({"path": helpers.ROOT / "demo"}, "results/demo.h5", data=demo))
    study.add("2_olmoe", sections({"path": "models/olmoe_a"}, "results/olmoe.h5"))
    study.add("3_broken", sections({"path": "models/absent", "config": models / "olmoe_a" / "config.json"}, "results/no.h5"))
    study.add("4_later", sections({"path": "models/olmoe_a"}, "results/later.h5"))
    dry = study.call(SLURM / "submit", "--dry-run")
    lines = dry.stdout.splitlines()
    assert len(lines) == 5 and all("gpu" not in line and "gres" not in line for line in lines)
    assert "dependency=afterany:JOB:JOB" in lines[-1] and not (study.folder / "logs").exists()
    done = study.call(SLURM / "submit", "1", "2,3", "--", "-s", "analysis.threshold=2.0")
    jobs = re.findall(r": job (\d+)", done.stderr)
    assert len(jobs) == 4
    assert study.wait_for_end(jobs[3]) == "COMPLETED", study.all_logs()
    status = study.status()
    assert status["1_demo"][0] == "done" and "outlier feature" in status["1_demo"][1]
    assert status["3_broken"][0] == "failed" and "models/absent" in status["3_broken"][1]
    assert status["4_later"] == ("-", "not started from here")
    table = (study.folder / "report" / "models.md").read_text()
    assert "demo" in table and "olmoe_a" in table
    assert "3_broken" in (study.folder / "report" / "status.txt").read_text()
    assert helpers.datasets(study.folder / "results" / "olmoe.h5")  # and it is done, not run again
    again = study.call(SLURM / "submit", "--no-report", "1", "2")
    assert again.stderr.count("done before") == 2


def test_submit_refuses_what_no_partition_can_hold(study):
    shape = json.loads((helpers.ROOT / "configs" / "models" / "mixtral-8x7b.json").read_text())
    (study.folder / "large.json").write_text(json.dumps(shape | {"hidden_size": 16384}))
    study.add("large", sections({"path": "synthetic:1", "config": study.folder / "large.json"}, "large.h5"))
    done = study.call(SLURM / "submit", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert re.match(r"slurm: 1 large: not submitted, no partition can hold it: all: .*; small: ", done.stderr)


def test_gpus_are_asked_for_as_the_site_wants(tmp_path):
    with slurm_cluster.Cluster(gpus=2) as with_gpus:
        study = Study(with_gpus, tmp_path)
        shutil.copy(helpers.ROOT / "configs" / "models" / "olmoe-1b-7b-0125.json", study.folder / "shape.json")
        study.add("model", {"model": {"path": "synthetic:1", "config": study.folder / "shape.json"},
                            "data": {"tokens": "synthetic:1"}, "deployment": {"gpus": 1}, "output": {"path": "r.h5"}})
        asked = {}
        for request in ("auto", "gres:h100", "per-task", "none"):
            study.site(GPU_REQUEST=request, RANKS=1)
            line = study.call(SLURM / "submit", "--no-report", "--dry-run").stdout
            asked[request] = re.findall(r"--(?:gres|gpus)\S+", line)
            # Slurm takes it: it would run.
            with_gpus.run("bash", "-c", line.replace("sbatch ", "sbatch --test-only ", 1), cwd=study.folder)
        assert asked == {"auto": ["--gres=gpu:1"], "gres:h100": ["--gres=gpu:h100:1"],
                         "per-task": ["--gpus-per-task=1"], "none": []}
        study.site(GPU_MEMORY_GB=1)
        refused = study.call(SLURM / "submit", check=False)
        assert refused.returncode == 2 and "a memory budget of 1 GB per rank is too small" in refused.stderr
        study.site()
        job = study.sbatch("--array=1") + "_1"
        assert study.wait_for_end(job) == "FAILED"
        assert "the model's plan wants 1 GPU(s), but the job has none" in study.log("model")
