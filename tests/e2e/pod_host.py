"""A real sshd on loopback that stands for one pod: a folder, an environment and processes of its own."""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import ports
import processes

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
MARK = "MOE_POD_EMULATED"  # in the environment of everything that runs in a pod, with its id

CONFIG = """
Port {port}
{listen}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys {home}/.ssh/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PermitRootLogin prohibit-password
MaxStartups 100
MaxSessions 100
UseDNS no
LogLevel INFO
ForceCommand {folder}/session
SetEnv "HOME={home}" {mark}={pod}
KexAlgorithms curve25519-sha256
Ciphers aes128-gcm@openssh.com
"""

# What sshd runs in place of the command, which it finds in SSH_ORIGINAL_COMMAND. A folder of its own is all that the
# pod has of a machine of its own. `cut`: one transfer's bytes end there, as when the network does; `full`: no writing.
SESSION = """#!/bin/bash
cd {home} || exit 255
variables=(PATH={path} HOME={home} LANG=C.UTF-8 USER="$USER" LOGNAME="$USER" SHELL=/bin/bash {mark}={pod} {variables})
[[ -z ${{SSH_CONNECTION-}} ]] || variables+=(SSH_CONNECTION="$SSH_CONNECTION")
[[ -z ${{SSH_AUTH_SOCK-}} ]] || variables+=(SSH_AUTH_SOCK="$SSH_AUTH_SOCK")
if [[ -z ${{SSH_ORIGINAL_COMMAND-}} ]]; then exec env -i "${{variables[@]}}" bash; fi
run=(env -i "${{variables[@]}}" bash -c "$SSH_ORIGINAL_COMMAND")
if [[ $SSH_ORIGINAL_COMMAND == *rsync*--server* ]] && mv {folder}/cut {folder}/cut.$$ 2>/dev/null; then
  read -r bytes <{folder}/cut.$$
  if [[ $SSH_ORIGINAL_COMMAND == *--sender* ]]; then
    "${{run[@]}}" | dd bs=1 count="$bytes" status=none
  else
    dd bs=1 count="$bytes" status=none | "${{run[@]}}"
  fi
  kill -9 "$PPID"
fi
exec "${{run[@]}}"
"""


# The container's first process notes its pid, which in a container would be 1.
FIRST = 'export MOE_POD_INIT=$$; printf "MOE_POD_INIT=%s\\0" "$$" >>"$0"; exec "$@"'


def missing():
    """Why no sshd can be started here, or None."""
    absent = [name for name in ("ssh", "ssh-keygen", "rsync") if not shutil.which(name)]
    absent += [] if SSHD else ["sshd"]
    return (
        f"{', '.join(absent)} not installed (apt-get install openssh-server openssh-client rsync)" if absent else None
    )


def make_key(path, comment="moe-pod test"):
    """A new pair of keys; the public one's line."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True, stdin=subprocess.DEVNULL
    )
    return pathlib.Path(f"{path}.pub").read_text().strip()


class PodHost:
    """host = PodHost(...); host.start(); ...; host.end()"""

    def __init__(self, folder, pod, keys, environment, arguments=(), volume=None, address=None, session=None):
        """folder: made here, removed at the end; keys: who may come in; environment: the container's; arguments: of
        its start, which may end with `exec $MOE_POD_START`, the image's own start; volume: folder that outlives the
        pod; address: of a cluster's network, where its sshd listens at port 22, too; session: more variables of its
        ssh sessions."""
        self.folder = pathlib.Path(folder)
        self.pod = pod
        self.home = self.folder / "home"
        self.home.mkdir(parents=True)
        self.kept = ports.reserved()
        self.port = ports.number(self.kept)
        self.environment = environment
        self.arguments = list(arguments)
        self.session = {
            "MOE_POD_ENVIRON": self.folder / "environ",
            "MOE_POD_REMOTE_DIR": (volume or self.home / "workspace") / "moe-outliers",
            "MOE_POD_WATCHED": self.folder / "watched",
        } | (session or {})
        self.shared_memory = self.folder / "shm"
        self.shared_memory.mkdir()
        self.address = address
        self.first = None
        (self.folder / "authorized_keys").write_text("".join(f"{key}\n" for key in keys))

    def start(self):
        """Start the container. The end of its first process, the sshd if no arguments say otherwise, is its own."""
        folder = self.folder
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # sshd asks for it
        if not (folder / "host_key").exists():
            make_key(folder / "host_key", "host")
        listen = "ListenAddress 127.0.0.1"
        if self.address and os.geteuid() == 0:
            listen += f"\nListenAddress {self.address}:22"
        names = {
            "port": self.port,
            "listen": listen,
            "folder": folder,
            "home": self.home,
            "mark": MARK,
            "pod": self.pod,
        }
        (folder / "sshd_config").write_text(CONFIG.format(**names))
        daemon = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        (folder / "start.sh").write_text(f"#!/bin/bash\nexec {shlex.join(daemon)}\n")
        (folder / "start.sh").chmod(0o755)
        container = self.environment | {
            "MOE_POD_START": str(folder / "start.sh"),
            "MOE_POD_SHM": str(self.shared_memory),
            "MOE_POD_WATCHED": str(folder / "watched"),
        }
        (folder / "environ").write_bytes(b"".join(f"{name}={value}\0".encode() for name, value in container.items()))
        (folder / "session").write_text(
            SESSION.format(
                home=self.home,
                path=shlex.quote(os.environ["PATH"]),
                mark=MARK,
                pod=self.pod,
                folder=folder,
                variables=" ".join(shlex.quote(f"{name}={value}") for name, value in self.session.items()),
            )
        )
        (folder / "session").chmod(0o755)
        with open(folder / "container.log", "ab") as log:
            self.first = subprocess.Popen(
                ["bash", "-c", FIRST, str(folder / "environ"), *(self.arguments or [str(folder / "start.sh")])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=container | {"PATH": os.environ["PATH"], "HOME": str(self.home), MARK: self.pod},
                start_new_session=True,
                cwd=self.home,
            )

    def cut_next_transfer(self, after):
        """The next rsync loses its connection after that many bytes."""
        (self.folder / "cut").write_text(f"{after}\n")

    def exited(self):
        """Whether the container has ended by itself."""
        return self.first is not None and self.first.poll() is not None

    def processes(self):
        return processes.with_variable(f"{MARK}={self.pod}".encode())

    def kill(self):
        """End everything that runs in the pod; its folder stays."""
        if self.first is not None:
            self.first.kill()
            self.first.wait()
        for _ in range(20):  # what is being started while we look is found the next time
            found = self.processes()
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def end(self):
        self.kill()
        self.kept.close()
        shutil.rmtree(self.folder, ignore_errors=True)
