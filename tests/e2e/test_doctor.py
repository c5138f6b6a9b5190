"""moe-outliers doctor: what it says of how ranks were started, of folders, checkpoints and limits; that it leaves nothing
behind and always ends."""

# cores: 1

import os
import re
import resource
import shutil
import subprocess
import time

import pytest

import helpers
import slurm_cluster
import test_mpi_io

MODEL = helpers.REFERENCES / "mixtral_a"  # three shards
SHARDS = sorted(path.name for path in MODEL.glob("*.safetensors"))
LINE = re.compile(r"(ok|note|fault) +(\S+) +(.*)")
OPEN_MPI = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"}


class Diagnosis:
    """What a doctor said: lines {subject: [(finding, text)]}, verdict and launch line."""

    def __init__(self, done):
        self.status = done.returncode
        *lines, empty, verdict, launch = done.stdout.splitlines()
        assert empty == ""
        self.lines = {}
        for line in lines:
            finding, subject, text = LINE.fullmatch(line).groups()
            self.lines.setdefault(subject, []).append((finding, text))
        self.faults = [f"{subject}: {text}" for subject, said in self.lines.items() for f, text in said if f == "fault"]
        self.notes = [f"{subject}: {text}" for subject, said in self.lines.items() for f, text in said if f == "note"]
        self.verdict = verdict.removeprefix("verdict: ")
        self.launch = launch.removeprefix("launch: ")
        assert self.verdict.startswith(f"{len(self.faults)} fault" if self.faults else "nothing is wrong")
        assert self.status == (1 if self.faults else 0)

    def fault(self, subject, pattern):
        """The only fault, of which the pattern is the begin."""
        assert len(self.faults) == 1, self.faults
        assert re.match(f"{subject}: {pattern}", self.faults[0]), self.faults[0]
        return self.faults[0]


def command(folder, model=MODEL, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    sections = helpers.run_sections(model, MODEL / "tokens.h5", folder / "out" / "r.h5")
    for section, keys in changes.items():
        sections[section] = sections[section] | keys
    return ["doctor", helpers.write_config(folder / "r.cfg", sections)]


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def diagnose(folder, ranks=None, env=None, more=(), **changes):
    """The doctor's words on a run; whatever it finds, the folder's files stay as they are."""
    args = [*command(folder, **changes), *more]
    before = tree(folder)
    done = helpers.run(args, ranks, check=False, env=helpers.quick(ranks) | (env or {}))
    assert tree(folder) == before
    return Diagnosis(done)


@pytest.fixture
def model(tmp_path):
    """A copy of the checkpoint."""
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


# --- nothing is wrong ---


@pytest.mark.parametrize("ranks", (None, 2))
def test_well(tmp_path, ranks):
    said = diagnose(tmp_path, ranks)
    assert not said.faults
    expected = {"ranks", "start", "MPI", "GPUs", "cores", "network", "NCCL", "output", "MPI-IO", "checkpoint"}
    assert expected | {"tokens", "memlock", "/dev/shm", "memory", "disk"} <= said.lines.keys()
    assert said.lines["ranks"][0][1].startswith(f"{ranks or 1} on 1 node: {ranks or 1} on ")
    assert said.lines["start"] == [("ok", "by Open MPI's mpirun" if ranks else "by hand")]
    assert "read it back; locks work" in said.lines["MPI-IO"][0][1]
    launcher = f"mpirun -np {ranks} " if ranks else ""
    assert said.launch == f"{launcher}{helpers.program()} run {tmp_path}/r.cfg"


def test_says_nothing_on_stderr(tmp_path):
    """MPI's own words neither: of a process alone it has no folder for them."""
    done = helpers.run(command(tmp_path), env=helpers.quick())
    assert done.stderr == "" and "ok     MPI-IO" in done.stdout


def test_launch_line_is_quoted(tmp_path):
    folder = tmp_path / "it's here"
    said = diagnose(folder, more=["-s", "analysis.threshold=5.0"])
    done = subprocess.run(["sh", "-c", f"printf '%s|' {said.launch}"], capture_output=True, text=True)
    assert done.stdout == f"{helpers.program()}|run|{folder}/r.cfg|-s|analysis.threshold=5.0|"


def test_without_config(tmp_path):
    done = helpers.run(["doctor"], cwd=tmp_path, env=helpers.quick())
    said = Diagnosis(done)
    assert [note.split(":")[0] for note in said.notes] == ["config"]
    assert said.launch == f"{helpers.program()} run CONFIG"
    assert os.listdir(tmp_path) == []


def test_many_ranks(tmp_path):
    said = diagnose(tmp_path, 5)
    assert any(re.match(r"plan: \d of 5 ranks ha(s|ve) nothing to compute: the model has \d stages", note) for note in said.notes)
    assert not said.faults


# --- how the ranks were started ---

STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}


def no_srun(tmp_path):
    """Environment in which srun is not found."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}


def with_srun(tmp_path, kinds):
    variables = no_srun(tmp_path)
    (tmp_path / "bin" / "srun").write_text(f"#!/bin/sh\nprintf 'MPI plugin types are...\\n{kinds}' >&2\n")
    return variables


def test_singletons_of_srun(tmp_path):
    environment = STEP | {"SLURM_PROCID": "0"} | with_srun(tmp_path, "\\tnone\\n\\tpmix\\n\\tpmi2\\n")
    said = diagnose(tmp_path, env=environment)
    said.fault("start", "srun started 4 programs that do not know each other, each is rank 0 of 1")
    assert said.launch == f"srun --mpi=pmix -n 4 {helpers.program()} run {tmp_path}/r.cfg"


def test_singletons_and_no_pmix(tmp_path):
    said = diagnose(tmp_path, env=STEP | {"SLURM_PROCID": "0"} | no_srun(tmp_path))
    said.fault("start", "srun started 4 programs")
    assert said.launch.startswith("mpirun -np 4 ")


def test_only_the_first_singleton_speaks(tmp_path):
    done = helpers.run(command(tmp_path), check=False, env=helpers.quick() | STEP | {"SLURM_PROCID": "2"})
    assert (done.returncode, done.stdout) == (1, "")


def test_by_hand_in_a_job(tmp_path):
    environment = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"} | with_srun(tmp_path, "pmi2")
    said = diagnose(tmp_path, env=environment)
    said.fault("start", "1 rank, started by hand, though the Slurm job has 4 tasks")
    assert said.launch.startswith("srun --mpi=pmi2 -n 4 ")


def test_mpirun_of_another_mpi(tmp_path):
    said = diagnose(tmp_path, env={"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"})
    said.fault("start", r"mpirun started 3 programs that do not know each other: it belongs to another MPI")
    assert said.launch.startswith("mpirun -np 3 ")


@pytest.mark.skipif(slurm_cluster.missing() is not None, reason=f"no Slurm here: {slurm_cluster.missing()}")
@pytest.mark.skipif(os.environ.get("MO_SANITIZE") == "1", reason="libraries of MPI for Slurm leak")
def test_real_srun(tmp_path):
    argv = helpers.command(command(tmp_path))
    with slurm_cluster.Cluster() as cluster:
        done = cluster.run("srun", "--mpi=pmix", "-n", 2, *argv, **OPEN_MPI)
        said = Diagnosis(done)
        assert said.lines["start"] == [("ok", "by srun with PMIx")]
        assert said.launch.startswith("srun --mpi=pmix -n 2 ")
        done = cluster.run("srun", "--mpi=none", "-n", 2, *argv, check=False, **OPEN_MPI)
        said = Diagnosis(done)
        said.fault("start", "2 programs were started by srun|srun started 2 programs")
        assert said.launch.startswith("srun --mpi=pmix -n 2 ")


# --- the network ---


@pytest.mark.parametrize("ranks", (None, 2))
def test_no_such_interface(tmp_path, ranks):
    said = diagnose(tmp_path, ranks, env={"NCCL_SOCKET_IFNAME": "nosuch,=lo"})
    said.fault("NCCL", "NCCL_SOCKET_IFNAME=nosuch,=lo names no interface of ")


@pytest.mark.parametrize("names", ("=lo", "nosuch,l", "^nosuch"))
def test_interface_is_there(tmp_path, names):
    assert not diagnose(tmp_path, env={"NCCL_SOCKET_IFNAME": names}).faults


@pytest.mark.parametrize("names", ("=l",))
def test_interface_is_not(tmp_path, names):
    diagnose(tmp_path, env={"NCCL_SOCKET_IFNAME": names}).fault("NCCL", "NCCL_SOCKET_IFNAME=")


# --- the checkpoint and the tokens ---


def test_missing_shard(tmp_path, model):
    (model / SHARDS[1]).unlink()
    said = diagnose(tmp_path, 2, model=model)
    assert f"shard {SHARDS[1]} is missing ({model})" in said.fault("checkpoint", "shard ")
    assert "memory" in said.lines  # planned all the same


def test_missing_shards(tmp_path, model):
    for name in SHARDS[1:]:
        (model / name).unlink()
    fault = diagnose(tmp_path, model=model).fault("checkpoint", "2 of 3 shards are missing ")
    assert f"({model}): {SHARDS[1]}, {SHARDS[2]}: get them" in fault


def test_short_shard(tmp_path, model):
    with (model / SHARDS[2]).open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    assert SHARDS[2] in diagnose(tmp_path, model=model).fault("checkpoint", "")


def test_no_checkpoint(tmp_path):
    said = diagnose(tmp_path, 2, model=tmp_path / "nowhere")
    said.fault("checkpoint", "the checkpoint is missing .*: set model.name to .* scripts/fetch")
    assert "memory" not in said.lines


def test_shapes_without_a_checkpoint(tmp_path):
    more = ["-s", f"model.config={MODEL}/config.json"]
    said = diagnose(tmp_path, model=tmp_path / "nowhere", more=more)
    said.fault("checkpoint", "the checkpoint is missing")
    assert said.lines["memory"][0][0] == "ok"


def test_too_few_tokens(tmp_path):
    diagnose(tmp_path, 2, data={"sequences": 1000}).fault("tokens", "too few sequences")


# --- the output ---


def test_no_output_folder(tmp_path):
    path = tmp_path / "absent" / "r.h5"
    said = diagnose(tmp_path, 2, output={"path": str(path)})
    said.fault("output", "the output folder does not exist .* create it with mkdir -p ")
    assert "MPI-IO" not in said.lines


def test_result_exists(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "r.h5").write_text("older")
    said = diagnose(tmp_path)
    said.fault("output", "the result file exists .* output.overwrite = true")
    assert not diagnose(tmp_path, output={"overwrite": True}).faults


def test_interrupted_run(tmp_path):
    (tmp_path / "out" / "r.h5.resume").mkdir(parents=True)
    assert any("an interrupted run lies in " in note for note in diagnose(tmp_path).notes)


def test_read_only_folder(tmp_path):
    with helpers.small_disk(tmp_path / "disk", "64k"):
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        said = diagnose(tmp_path, 2, output={"path": str(tmp_path / "disk" / "r.h5")})
        said.fault("output", "cannot write to the output folder .*Read-only file system")


def test_full_disk(tmp_path):
    with helpers.small_disk(tmp_path / "disk", "64k"):
        with open(tmp_path / "disk" / "ballast", "wb", buffering=0) as file:
            for size in (65536, 4096):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass
        said = diagnose(tmp_path, 2, output={"path": str(tmp_path / "disk" / "r.h5")})
        assert {fault.split(":")[0] for fault in said.faults} == {"MPI-IO", "disk"}
        assert "No space left on device" in said.faults[0]


def test_little_room(tmp_path):
    with helpers.small_disk(tmp_path / "disk", "64k"):
        said = diagnose(tmp_path, output={"path": str(tmp_path / "disk" / "r.h5"), "activations": "all"})
        said.fault("disk", "0.000 GB are free in .*: free space or choose another output.path")


# --- MPI-IO ---


@pytest.mark.parametrize("kind", ("lock", "lost"))
def test_no_mpi_io(tmp_path, kind):
    said = diagnose(tmp_path, 2, test_mpi_io.without(kind))
    assert not said.faults
    assert said.lines["MPI-IO"][0][0] == "note"
    assert said.lines["MPI-IO"][0][1].startswith(test_mpi_io.OBSTACLES[kind])
    assert "in turns" in said.lines["MPI-IO"][0][1]


def test_mpi_io_insisted_on(tmp_path):
    said = diagnose(tmp_path, 2, test_mpi_io.without("lock", rank=1), output={"mpi_io": "on"})
    said.fault("MPI-IO", r"byte ranges cannot be locked \(fcntl\) on rank 1, .*: set output.mpi_io = \"auto\"")


def test_mpi_io_is_not_tried(tmp_path):
    said = diagnose(tmp_path, 2, test_mpi_io.without("hang"), output={"mpi_io": "off"})
    assert said.lines["MPI-IO"][0][1].startswith('not tried, as output.mpi_io is "off"')


@pytest.mark.parametrize("ranks, rank", ((None, None), (2, None), (2, 1)))
def test_mpi_io_hangs(tmp_path, ranks, rank):
    said = diagnose(tmp_path, ranks, test_mpi_io.without("hang", rank), more=["--patience", "3"])
    said.fault("MPI-IO", "no answer within 3 s: a file system or another rank hangs")


def test_terminated(tmp_path):
    args = command(tmp_path)
    env = helpers.environment(**helpers.quick(), **test_mpi_io.without("hang"))
    with subprocess.Popen(helpers.command(args), stdout=subprocess.PIPE, text=True, env=env) as process:
        while not process.stdout.readline().startswith("ok     output"):
            pass
        while not os.listdir(tmp_path / "out"):
            time.sleep(0.01)
        process.terminate()
        assert process.wait(30) == 128 + 15
    assert os.listdir(tmp_path / "out") == []


# --- devices and memory ---


def test_no_such_device(tmp_path):
    if helpers.has_cuda():
        pytest.skip("built with CUDA")
    diagnose(tmp_path, 2, engine={"device": "cuda"}).fault("GPUs", "")


def test_budget_too_small(tmp_path):
    said = diagnose(tmp_path, 2, engine={"device_memory_gb": 1e-6})
    said.fault("memory", "a memory budget of 1e-06 GB per rank is too small .* the smallest that works is ")


def test_address_space(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    if os.environ.get("MO_SANITIZE") == "1":
        pytest.skip("sanitizers need terabytes of addresses")
    args = command(tmp_path, data={"tokens": "synthetic:0", "sequences": 1000, "length": 100000})
    done = subprocess.run(
        helpers.command(args), preexec_fn=limit, capture_output=True, text=True, env=helpers.environment(**helpers.quick())
    )
    said = Diagnosis(done)
    assert any(fault.startswith("memory: ") for fault in said.faults), done.stdout


# --- the command line ---


@pytest.mark.parametrize("ranks", (None, 2))
def test_bad_config(tmp_path, ranks):
    (tmp_path / "r.cfg").write_text("engine: { raeders = 1; };")
    done = helpers.run(["doctor", tmp_path / "r.cfg"], ranks, check=False, env=helpers.quick(ranks))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count('unknown key "raeders"') == 1


@pytest.mark.parametrize(
    "args, text",
    (
        (["--patience", "0"], "--patience"),
        (["a", "b"], "second config file"),
        (["-s", "data.skip=1"], "no config file"),
        (["--fast"], "unknown option"),
    ),
)
def test_usage(args, text):
    done = helpers.run(["doctor", *args], check=False)
    assert done.returncode == 2
    assert text in done.stderr


def test_help():
    assert "moe-outliers doctor [CONFIG]" in helpers.run(["doctor", "--help"]).stdout
    assert "  doctor [CONFIG] " in helpers.run(["--help"]).stdout
