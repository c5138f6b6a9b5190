"""A Slurm of its own on this machine: munge, slurmctld and two slurmd, their files in one folder, gone at the end."""

import contextlib
import getpass
import os
import pathlib
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time

import helpers
import ports
import processes

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
MEMORY = 16000  # MB
CPUS = 32  # of each node, whatever the machine has: jobs mostly wait, and none should wait for another

CONFIG = """
ClusterName=moe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
TmpFS={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=5
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=600
FirstJobId={first_job}
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PrologFlags=NoHold
{gres}
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
PartitionName=small Nodes=n1 MaxTime=10 State=UP
"""


def missing():
    """Why no Slurm can be started here, or None."""
    absent = [name for name in DAEMONS if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "starting Slurm's daemons needs root"


class Cluster:
    """with Cluster() as cluster: cluster.run("sinfo") ..."""

    def __init__(self, gpus=0):
        """gpus: of each node, which are but names."""
        self.gpus = gpus
        # Not pytest's folder: the socket's path must be short, and munged wants no folder that others may write.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="moe-slurm-"))
        self.stack = contextlib.ExitStack()
        self.daemons = []
        self.environment = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "PMIX_MCA_gds": "hash",  # not the store in shared memory: the two nodes are one machine
        }

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self.run("scancel", "--user", getpass.getuser(), timeout=10)
            self.wait(lambda: not self.run("squeue", "-h").stdout.strip(), 10)
        for daemon in reversed(self.daemons):  # asked to end, slurmctld takes seconds to save what nobody needs
            daemon.kill()
            daemon.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self):
        kept = [self.stack.enter_context(ports.reserved()) for _ in range(1 + len(NODES))]
        numbers = [ports.number(port) for port in kept]
        nodes = [
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
            f"RealMemory={MEMORY} State=UNKNOWN" + (f" Gres=gpu:h100:{self.gpus}" if self.gpus else "")
            for name, port in zip(NODES, numbers[1:])
        ]
        text = CONFIG.format(
            host=socket.gethostname(),
            user=getpass.getuser(),
            folder=self.folder,
            ports=numbers,
            first_job=random.randrange(1, 60_000_000),  # Open MPI names files by it, of all clusters on this machine
            nodes="\n".join(nodes),
            gres="GresTypes=gpu" if self.gpus else "",
        )
        if self.gpus:
            for number in range(self.gpus):
                # a device, as Slurm numbers GPUs by theirs; nobody opens it
                os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(195, number))
            files = f"{self.folder}/gpu[0-{self.gpus - 1}]"
            (self.folder / "gres.conf").write_text(f"Name=gpu Type=h100 File={files}\n")
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        names = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        files = [self.folder / f"munge.{name.split('-')[0]}" for name in names]
        options = [f"--{name}={path}" for name, path in zip(names, files)]
        self._daemon("munged", "--foreground", "--force", "--num-threads=2", *options)
        self.wait((self.folder / "munge.socket").exists, 20, "munged has no socket")
        self._daemon("slurmctld", "-D", "-c")
        for name in NODES:
            (self.folder / name).mkdir()
            self._daemon("slurmd", "-D", "-c", "-N", name)
        self.wait(self._idle, 60, "the nodes do not come up")

    def _daemon(self, *argv):
        log = (self.folder / f"{len(self.daemons)}-{argv[0]}.out").open("wb")
        self.daemons.append(
            subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._variables({}))
        )
        log.close()

    def _idle(self):
        for daemon in self.daemons:
            assert daemon.poll() is None, f"{daemon.args[0]} ended:\n{self.logs()}"
        states = self.run("sinfo", "-h", "-N", "-p", "all", "-o", "%t", check=False).stdout.split()
        return states == ["idle"] * len(NODES)

    def _variables(self, more):
        """Environment of a command: Slurm's own variables of a job that the test itself runs in do not count."""
        fixed = {name: value for name, value in helpers.environment().items() if not name.startswith(("SLURM", "SBATCH"))}
        return fixed | self.environment | more

    def run(self, *argv, check=True, cwd=None, timeout=60, **more):
        """Run a command of this cluster; its CompletedProcess with text output."""
        done = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, timeout=timeout, cwd=cwd, env=self._variables(more)
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, argv))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def wait(self, condition, seconds, what="it does not happen"):
        """Value of condition() as soon as it is true."""
        end = time.monotonic() + seconds * helpers.SLOW
        while not (value := condition()):
            assert time.monotonic() < end, f"{what}\n{self.logs()}"
            time.sleep(0.05)
        return value

    def logs(self):
        paths = sorted(self.folder.glob("*.out"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-600:]}" for path in paths)

    def job(self, name):
        """{key: value} of what scontrol tells about a job, {} if it does not know it."""
        text = self.run("scontrol", "-o", "show", "job", name, check=False).stdout.split("\n")[0]
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def processes(self):
        """Processes that have the configuration of this cluster in their environment: daemons, steps, ranks."""
        return processes.with_variable(f"SLURM_CONF={self.environment['SLURM_CONF']}".encode())
