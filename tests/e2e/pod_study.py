"""A user of moe-pod: a small repository with configs, an account at the emulated RunPod, and the commands."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import secrets
import shlex
import shutil
import subprocess
import threading
import time

import helpers
import pod_host
import runpod_emulator

SHAPES = ("olmoe_a", "mixtral_a")
OF_THE_RUN = {"n_ranks", "started", "finished", "config"}
GPU = "NVIDIA A40"  # the cheapest that the configs' deployment sections allow; next comes the RTX A6000
NEXT_GPU = "NVIDIA RTX A6000"

# The image's program: like the one under test; while the file HOLD is there it waits, as a run that takes its time.
# Ranks of several nodes talk by TCP: names in shared memory are those of ranks on a node, and here all nodes are one
# machine.
PROGRAM = """#!/bin/bash
if [[ -n ${{OMPI_COMM_WORLD_SIZE-}} ]]; then
  export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo PMIX_MCA_gds=hash
fi
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 {variables}
while [[ $1 == run && -e {hold} ]]; do
  date +%s.%N >>{hold}.ticks
  sleep 0.2
done
exec {program} "$@"
"""


def program():
    """Path of moe-pod."""
    return helpers.program().parent / "moe-pod"


def missing():
    """Why moe-pod cannot be tested here, or None."""
    try:
        return pod_host.missing() or (None if program().is_file() else f"no program at {program()}")
    except FileNotFoundError as error:
        return str(error)


class Account:
    """An API key, a token and an ssh key, none of which may be found anywhere."""

    def __init__(self, folder):
        self.key = f"rpa_{secrets.token_hex(20).upper()}"
        self.token = f"hf_{secrets.token_hex(20)}"
        self.identity = folder / "id_ed25519"
        self.public_key = pod_host.make_key(self.identity)


def folder_of(pod):
    """Of its run, on the pod."""
    return pod.host.session["MOE_POD_REMOTE_DIR"] / "pods" / pod.name


def sections(model, output, **more):
    return {
        "model": {"path": model},
        "data": {"tokens": "synthetic:3", "sequences": 2, "length": 24},
        "analysis": {"threshold": 2.5, "bootstrap": 100},
        "engine": {"device": "cpu", "precision": "fp32", "micro_batch": 1, "threads": 1},
        "output": {"path": output},
        "deployment": {"gpus": 1, "min_vram_gb": 40.0, "container_disk_gb": 20.0},
    } | more


class Repository:
    """What the client sends: made once, and copied by links for each study."""

    def __init__(self, folder, shapes=SHAPES, demo=True):
        """shapes: random checkpoints that it has, which git does not track; demo: the demo, tracked."""
        self.folder = folder
        (folder / "configs").mkdir(parents=True)
        if demo:
            data = {"tokens": "demo/tokens.h5", "sequences": 4, "length": 64}
            self.add("demo", sections("demo", "results/demo.h5", data=data))
            shutil.copytree(helpers.ROOT / "demo", folder / "demo")
        shutil.copytree(helpers.ROOT / "src" / "pod" / "remote", folder / "src" / "pod" / "remote")
        for name in ("slurm", "scripts"):
            shutil.copytree(helpers.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "CMakeLists.txt").touch()
        (folder / "models").mkdir()
        for shape in shapes:
            self.add(shape, sections(f"models/{shape}", f"results/{shape}.h5"))
            arguments = ["synth", helpers.REFERENCES / shape / "config.json", "-o", folder / "models" / shape]
            helpers.run([*arguments, "--seed", "5"], env=helpers.quick())
        (folder / ".gitignore").write_text("/models/\n/results/\n/.moe-pod/\n*.bin\n")
        (folder / "not tracked.bin").write_bytes(b"x" * 1000)
        git = ["git", "-c", "init.defaultBranch=main", "-C", folder]
        for arguments in (["init", "-q"], ["add", "."]):
            subprocess.run([*git, *arguments], check=True, stdin=subprocess.DEVNULL)
        self.local = self.run_here(folder)

    def add(self, name, config):
        helpers.write_config(self.folder / "configs" / f"{name}.cfg", config)

    @staticmethod
    def run_here(folder):
        """{name: contents} of the results of runs on this machine."""
        found = {}
        (folder / "results").mkdir()
        for config in sorted((folder / "configs").glob("*.cfg")):
            helpers.run(["run", config], cwd=folder, env=helpers.quick())
            found[config.stem] = helpers.contents(folder / "results" / f"{config.stem}.h5", but=OF_THE_RUN)
        shutil.rmtree(folder / "results")
        return found


class Study:
    """with Study(folder, repository, account) as study: study.call("run", "configs/demo.cfg") ..."""

    def __init__(self, folder, repository, account, container=None, **emulated):
        """container: more variables of the containers; emulated: more arguments of the emulator."""
        self.account = account
        self.repository = repository
        self.folder = folder / "my study"
        shutil.copytree(repository.folder, self.folder, copy_function=os.link, symlinks=True)
        self.hold = folder / "hold"
        self.leaks = []
        image = folder / "moe-outliers"
        # What the program does here it does there: a login leaves out these, and OpenBLAS's kernels round differently.
        kept = {name: value for name, value in os.environ.items() if re.match("OPENBLAS_|.*SAN_OPTIONS$", name)}
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in kept.items())
        image.write_text(PROGRAM.format(variables=variables, hold=self.hold, program=helpers.program()))
        image.chmod(0o755)
        self.emulator = runpod_emulator.Emulator(
            folder / "pods",
            account.key,
            [account.public_key],
            container={"MOE_POD_PROGRAM": image, "MOE_POD_TICK": "1"} | (container or {}),
            **emulated,
        )
        self.emulator.on_remove = lambda pod: self.look_for_secrets(pod.host.folder)
        (folder / "home").mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "LC_ALL": "C.UTF-8",
            "RUNPOD_API_KEY": account.key,
            "HF_TOKEN": account.token,
            "MOE_POD_API": self.emulator.url,
            "MOE_POD_IDENTITY": str(account.identity),
            "MOE_POD_SOURCE": str(self.folder),
            "MOE_POD_TIMEOUT": "5",
            "MOE_POD_PATIENCE": "40",
            "MOE_POD_POLL": "0.3",
            "MOE_POD_LOOKUP": "2",
            "MOE_POD_REACH": "40",
            "MOE_POD_SYNC": "0.5",
            "MOE_POD_GRACE": "30",
            "MOE_POD_STALL": "60",
            "MOE_POD_MARGIN": "2",
        } | kept

    def __enter__(self):
        self.emulator.__enter__()
        return self

    def __exit__(self, *_):
        self.emulator.__exit__()
        self.look_for_secrets(self.folder)
        assert not self.emulator.errors, "\n".join(self.emulator.errors)
        assert not self.leaks, self.leaks

    # --- commands ---

    def start(self, *arguments, **more):
        """A process of its own process group, with its output in one pipe."""
        return subprocess.Popen(
            [program(), *map(str, arguments)],
            cwd=self.folder,
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def call(self, *arguments, status=0, timeout=120, **more):
        """Output of a command that ends with that status."""
        process = self.start(*arguments, **more)
        try:
            output, _ = process.communicate(timeout=timeout * helpers.SLOW)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"moe-pod {arguments} does not end:\n{output}\n{self.story()}") from None
        self.leaks += [f"the output of {arguments}" for secret in self.secrets() if secret in output]
        assert process.returncode == status, f"moe-pod {arguments}: {process.returncode}\n{output}\n{self.story()}"
        return output

    def json(self, *arguments, **more):
        """What a command prints as JSON."""
        done = subprocess.run(
            [program(), *map(str, arguments), "--json"],
            cwd=self.folder,
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30 * helpers.SLOW,
        )
        assert done.returncode == 0, f"moe-pod {arguments}: {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def running(self, *arguments, **more):
        """A command that goes on; it is killed at the end if it is still there."""
        process = self.start(*arguments, **more)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.stdout.close()
            process.wait()

    def change_config(self, name, old, new):
        """In this study alone: the file is a link to the one of the others."""
        path = self.folder / "configs" / f"{name}.cfg"
        text = path.read_text()
        assert old in text
        path.unlink()
        path.write_text(text.replace(old, new))

    @contextlib.contextmanager
    def held(self, *arguments, **more):
        """A command whose run waits on the pod, and that pod; self.hold.unlink() lets the run go."""
        self.hold.touch()
        with self.running(*arguments, **more) as process:
            self.wait(self.hold.with_suffix(".ticks").exists, 60, "the run does not begin")
            (pod,) = self.emulator.pods.values()
            yield process, pod

    def finish(self, process, seconds=120):
        """Output of a command that comes to a good end."""
        output, _ = process.communicate(timeout=seconds * helpers.SLOW)
        assert process.returncode == 0, f"{process.returncode}\n{output}\n{self.story()}"
        return output

    # --- what is there ---

    def story(self):
        """Calls, logs and errors so far, for a message."""
        calls = [f"  {call.method} {call.path} {call.status} ({call.key})" for call in self.emulator.calls[-40:]]
        logs = [
            f"--- {path}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted((self.folder / ".moe-pod").rglob("*.log"))
        ]
        return "\n".join(["the last calls:", *calls, *logs, *self.emulator.errors])

    def wait(self, condition, seconds=60, what="it does not happen"):
        """The condition's value when it is true."""
        limit = time.monotonic() + seconds * helpers.SLOW
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > limit:
                raise AssertionError(f"{what}\n{self.story()}")
            time.sleep(0.05)

    def ledger(self):
        """Text of the state file."""
        path = self.folder / ".moe-pod" / "ledger.json"
        return path.read_text() if path.exists() else ""

    def assert_all_known(self):
        """What costs money is in the ledger, by its name, and no model has two."""
        with self.emulator.lock:
            names = [cluster.name for cluster in self.emulator.clusters.values()]
            names += [pod.name for pod in self.emulator.pods.values() if not pod.cluster]
        text = self.ledger()
        assert not [name for name in names if name not in text], f"{names}\n{text}\n{self.story()}"
        models = [re.fullmatch(r"(moe-outliers-.*)-\w+", name)[1] for name in names]
        assert len(models) == len(set(models)), f"{names}\n{self.story()}"

    def assert_never_two(self):
        """No two pods of one model were there at the same time."""
        spans = {}
        for pod in self.emulator.history:
            if not pod.cluster:
                model = re.fullmatch(r"(moe-outliers-.*)-\w+", pod.name)[1]
                spans.setdefault(model, []).append((pod.created, pod.ended or time.time()))
        for model, found in spans.items():
            found.sort()
            assert all(before[1] <= after[0] for before, after in zip(found, found[1:])), f"{model}: {found}"

    def make_pods_dearer(self, price):
        """Pods that are created cost more dollars per hour than the catalog says."""

        def observe(moment, method, path):
            if (moment, method) == ("after", "POST"):
                for pod in self.emulator.pods.values():
                    pod.price = price

        self.emulator.observe = observe

    def assert_nothing_left(self):
        assert not self.emulator.alive(), self.story()
        self.assert_never_two()

    def assert_same(self, *names):
        """The results are those of local runs."""
        for name in names:
            path = self.folder / "results" / f"{name}.h5"
            assert path.is_file(), f"no {path}\n{self.story()}"
            found = helpers.contents(path, but=OF_THE_RUN)
            helpers.assert_same(found, self.repository.local[name])

    def assert_done(self, *names):
        self.assert_same(*names)
        self.assert_nothing_left()

    # --- secrets ---

    def secrets(self):
        return (self.account.key, self.account.token)

    def look_for_secrets(self, folder):
        """Notes every file under the folder that has the key or the token in it."""
        found = subprocess.run(
            ["grep", "-rlaFf", "-", "--", folder], input="\n".join(self.secrets()), capture_output=True, text=True
        )
        self.leaks += found.stdout.splitlines()


class ProcessWatch:
    """with ProcessWatch(account) as watch: looks all the time for processes that have the key or the token in their
    command line or, but for moe-pod itself and what fetches a model, in their environment. watch.leaks: those."""

    def __init__(self, account):
        self.secrets = [account.key.encode(), account.token.encode()]
        self.leaks, self.looks = set(), 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def watch(self):
        own = str(program()).encode() + b"\0"
        while not self.stop.wait(0.4):
            self.looks += 1
            for path in pathlib.Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    command = (path / "cmdline").read_bytes()
                    text = command
                    if not command.startswith(own) and b"fetch" not in command and int(path.name) != os.getpid():
                        text += (path / "environ").read_bytes()
                    if any(secret in text for secret in self.secrets):
                        self.leaks.add(command[:200].decode(errors="replace"))


# --- scenes: what a user goes through. They mostly wait, so all are started at once. ---


class Scenes:
    """@scenes.add makes a function of a study a scene; its arguments are the Study's."""

    def __init__(self):
        self.functions = {}

    def add(self, *also, **arguments):
        """also: values for a second argument of the function, each of which makes a scene of its own."""

        def register(function):
            for value in also or (None,):
                name = function.__name__ if value is None else f"{function.__name__}[{value}]"
                self.functions[name] = (function, () if value is None else (value,), arguments)
            return function

        return register

    def play(self, name, folder, repository, account):
        function, values, arguments = self.functions[name]
        folder.mkdir()
        with Study(folder, repository, account, **arguments) as study:
            function(study, *values)

    def start(self, names, folder, repository, account, at_once):
        """{name: future}, and the pool that runs them."""
        pool = concurrent.futures.ThreadPoolExecutor(at_once)
        numbered = enumerate(sorted(names, key=list(self.functions).index))
        futures = {
            name: pool.submit(self.play, name, folder / str(number), repository, account) for number, name in numbered
        }
        return futures, pool
