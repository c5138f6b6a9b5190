"""What RunPod keeps: catalog, pods and clusters as they come, run, cost and go. Each pod is an sshd (pod_host.py)."""

import dataclasses
import datetime
import pathlib
import random
import re
import secrets
import shlex
import string
import threading
import time
import traceback
import typing

import pod_host
from runpod_schema import Problem

LEVELS = ("NONE", "LOW", "MEDIUM", "HIGH")
PLACES = {"US-KS-2": "NORTH_AMERICA", "US-TX-3": "NORTH_AMERICA", "EU-RO-1": "EUROPE", "AP-JP-1": "ASIA"}
MOVES = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
}
CUDA = "12.8"  # of all machines
NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)


class GpuType(typing.NamedTuple):
    id: str
    name: str
    pool: typing.Optional[str]
    memory: int
    secure: float  # dollars per hour; 0: not there
    community: float
    most: tuple  # GPUs of one pod, secure and community
    stock: dict  # {data center: level}


GPUS = [
    GpuType("NVIDIA GeForce RTX 4090", "RTX 4090", "ADA_24", 24, 0.69, 0.34, (8, 4), {"EU-RO-1": 3, "US-KS-2": 2}),
    GpuType("NVIDIA GeForce RTX 5090", "RTX 5090", "ADA_32_PRO", 32, 0.89, 0.69, (8, 4), {"EU-RO-1": 2, "US-TX-3": 1}),
    GpuType("NVIDIA RTX A6000", "RTX A6000", "AMPERE_48", 48, 0.49, 0.33, (8, 4), {"US-TX-3": 2}),
    GpuType("NVIDIA A40", "A40", "AMPERE_48", 48, 0.40, 0.0, (10, 0), {"US-KS-2": 3, "EU-RO-1": 1}),
    GpuType("NVIDIA L40S", "L40S", "ADA_48_PRO", 48, 0.86, 0.79, (8, 4), {"US-TX-3": 2, "EU-RO-1": 1}),
    GpuType("NVIDIA A100 80GB PCIe", "A100 PCIe", "AMPERE_80", 80, 1.64, 1.19, (8, 4), {"US-KS-2": 1, "EU-RO-1": 2}),
    GpuType("NVIDIA A100-SXM4-80GB", "A100 SXM", "AMPERE_80", 80, 1.74, 0.0, (8, 0), {"US-KS-2": 3, "US-TX-3": 1}),
    GpuType("NVIDIA H100 PCIe", "H100 PCIe", "HOPPER_80", 80, 2.39, 1.99, (8, 4), {"US-KS-2": 1}),
    GpuType("NVIDIA H100 80GB HBM3", "H100 SXM", "HOPPER_80", 80, 2.99, 2.69, (8, 8), {"US-TX-3": 3, "AP-JP-1": 1}),
    GpuType("NVIDIA H100 NVL", "H100 NVL", "HOPPER_96", 94, 2.79, 2.59, (8, 4), {"US-KS-2": 0}),
    GpuType("NVIDIA H200", "H200 SXM", "HOPPER_141", 141, 3.99, 3.59, (8, 8), {"US-TX-3": 2, "EU-RO-1": 1}),
    GpuType("NVIDIA B200", "B200", "BLACKWELL_180", 180, 5.98, 0.0, (8, 0), {"AP-JP-1": 1}),
    GpuType("AMD Instinct MI300X OAM", "MI300X", None, 192, 2.49, 0.0, (8, 0), {"EU-RO-1": 2}),
]


@dataclasses.dataclass
class Fate:
    """What becomes of a pod: `status` that it gets in place of RUNNING, or that it vanishes, or that ssh comes late."""

    name: str  # regular expression within the pod's name
    status: str = ""
    ssh_late: float = 0
    times: int = 1  # pods that this happens to


@dataclasses.dataclass
class Pod:
    id: str
    request: dict
    key: str  # scoped to it
    created: float
    price: float  # dollars per hour
    place: str
    status: str = "PROVISIONING"
    started: typing.Optional[float] = None
    ended: typing.Optional[float] = None
    cost: float = 0  # of what was before the last change of its status
    charged: float = 0  # until when
    cluster: typing.Any = None
    rank: int = 0
    host: typing.Optional[pod_host.PodHost] = None
    lines: list = dataclasses.field(default_factory=list)  # system log: (time, text)
    left: threading.Event = dataclasses.field(default_factory=threading.Event)  # stopped or removed: `live` ends

    @property
    def name(self):
        return self.request["name"]


@dataclasses.dataclass
class Cluster:
    id: str
    request: dict
    created: float
    pods: list
    network: str  # first three numbers of its addresses

    @property
    def name(self):
        return self.request["name"]


def stamp(seconds):
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat().replace("+00:00", "Z")


class State:
    """What an account has. Whoever changes it holds the lock."""

    def __init__(self, folder, ssh_keys, provisioning, starting, container, session):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ssh_keys = list(ssh_keys)
        self.delays = (provisioning, starting)
        self.container = container or {}
        self.session = session or {}
        self.lock = threading.RLock()
        self.gpus = {gpu.id: gpu for gpu in GPUS}
        self.refused = set()  # (GPU type, data center or None: all): stocked by the catalog, yet no capacity
        self.fates = []
        self.pods, self.clusters, self.volumes = {}, {}, {}
        self.history, self.cluster_history = [], []  # all that ever were
        self.errors = []
        self.on_remove = lambda pod: None  # called before a pod's folder goes
        self.url = ""

    # --- what tests do ---

    def doom(self, name, status="", ssh_late=0, times=1):
        with self.lock:
            self.fates.append(Fate(name, status, ssh_late, times))

    def stock(self, gpu, **places):
        """Set the stock, {data center: level} with - as _ in the names."""
        with self.lock:
            levels = {place.replace("_", "-"): level for place, level in places.items()}
            self.gpus[gpu] = self.gpus[gpu]._replace(stock=levels)

    def add_volume(self):
        """Id of a new network volume."""
        with self.lock:
            name = self.new_id()
            self.volumes[name] = self.folder / f"volume-{name}"
            self.volumes[name].mkdir()
            return name

    def alive(self):
        """Ids of everything that costs money, clusters too."""
        with self.lock:
            return sorted(self.pods) + sorted(self.clusters)

    def vanish(self, pod):
        """The pod is gone, as if its machine had failed."""
        with self.lock:
            self.remove(pod)

    def billed(self, name=""):
        """Dollars so far of all pods whose name has that in it."""
        with self.lock:
            return sum(self.dollars(pod) for pod in self.history if name in pod.name)

    # --- state ---

    def dollars(self, pod):
        until = min(filter(None, (pod.ended, time.time())))
        return pod.cost + self.rate(pod) * max(0.0, until - pod.charged) / 3600

    @staticmethod
    def has_cuda(least):
        return [int(number) for number in least.split(".")] <= [int(number) for number in CUDA.split(".")]

    @staticmethod
    def rate(pod):
        return 0.0 if pod.status in ("EXITED", "TERMINATED") else pod.price

    def become(self, pod, status):
        """Enter a state; what it cost until now is added up."""
        with self.lock:
            pod.cost = self.dollars(pod)
            pod.charged = time.time()
            pod.status = status
            pod.lines.append((pod.charged, f"pod is {status}"))
            if status == "RUNNING":
                pod.started = pod.charged
            if status == "TERMINATED":
                pod.ended = pod.charged

    def remove(self, pod):
        if self.pods.pop(pod.id, None) is None:
            return
        pod.left.set()
        self.become(pod, "TERMINATED")
        pod.host.kill()
        self.on_remove(pod)
        pod.host.end()

    def new_id(self):
        while True:
            name = "".join(random.choices(string.ascii_lowercase + string.digits, k=14))
            if name not in self.pods:
                return name

    def price_of(self, gpu, cloud):
        return gpu.secure if cloud == "SECURE" else gpu.community

    def place(self, gpu_id, count, cloud, wished):
        """Data center for such a machine, and its price; 400 where there is none."""
        gpu = self.gpus.get(gpu_id)
        if gpu is None:
            raise Problem(400, f"gpu type {gpu_id} does not exist")
        price = self.price_of(gpu, cloud)
        most = gpu.most[0 if cloud == "SECURE" else 1]
        if not price:
            raise Problem(400, f"{gpu_id} is not available on {cloud} cloud")
        if count > most:
            raise Problem(400, f"gpu count {count} exceeds the maximum of {most} for {gpu_id}")
        unknown = set(wished) - set(PLACES)
        if unknown:
            raise Problem(400, f"unknown data center {sorted(unknown)[0]}")
        for name, level in sorted(gpu.stock.items(), key=lambda entry: -entry[1]):
            refused = {(gpu_id, None), (gpu_id, name)} & self.refused
            if level > 0 and (not wished or name in wished) and not refused:
                return name, price * count
        raise Problem(400, NO_CAPACITY)

    def make_pod(self, request, price, place, cluster=None, rank=0):
        pod_id = self.new_id()
        now = time.time()
        key = f"rpa_{secrets.token_hex(16).upper()}"
        pod = Pod(pod_id, request, key, now, price, place, charged=now, cluster=cluster, rank=rank)
        pod.lines.append((now, "create container " + request.get("image", "")))
        environment = {
            "RUNPOD_POD_ID": pod_id,
            "RUNPOD_API_KEY": pod.key,
            "RUNPOD_POD_HOSTNAME": f"{pod_id}-{secrets.token_hex(4)}",
            "RUNPOD_GPU_COUNT": str(request.get("gpu", {}).get("count", 1)),
            "RUNPOD_DC_ID": place,
            "RUNPOD_PUBLIC_IP": "127.0.0.1",
            "MOE_POD_API": self.url,
        }
        address = None
        if cluster:
            address = f"{cluster.network}.{rank + 2}"
            master = f"{cluster.network}.2"
            nodes, gpus = (cluster.request["compute"][name] for name in ("podCount", "gpuCountPerPod"))
            environment |= {
                "NODE_RANK": str(rank),
                "NUM_NODES": str(nodes),
                "NUM_TRAINERS": str(gpus),
                "WORLD_SIZE": str(nodes * gpus),
                "NODE_ADDR": f"{address}/24",
                "PRIMARY_ADDR": master,
                "MASTER_ADDR": master,
                "PRIMARY_PORT": "29400",
                "MASTER_PORT": "29400",
                "HOST_NODE_ADDR": f"{master}:29400",
                "MOE_POD_INTERFACE": "lo",
            }
        allowed = self.ssh_keys if request.get("startSsh") else []
        if request.get("startSsh"):
            environment["PUBLIC_KEY"] = "\n".join(self.ssh_keys)
        environment |= self.container | request.get("env", {})
        volume = None
        for mount in request.get("mounts", {}).get("network", []):
            volume = self.volumes[mount["volumeId"]]
        arguments = shlex.split(request.get("args", ""))
        folder = self.folder / pod_id
        pod.host = pod_host.PodHost(folder, pod_id, allowed, environment, arguments, volume, address, self.session)
        environment["RUNPOD_TCP_PORT_22"] = str(pod.host.port)
        self.pods[pod_id] = pod
        self.history.append(pod)
        self.start(pod)
        return pod

    def start(self, pod):
        pod.left = threading.Event()
        threading.Thread(target=self.live, args=(pod, pod.left), daemon=True).start()

    def fate_of(self, pod):
        with self.lock:
            for fate in self.fates:
                if fate.times > 0 and re.search(fate.name, pod.name):
                    fate.times -= 1
                    return fate
        return Fate("")

    def live(self, pod, left):
        """A pod's life, until it is gone or stopped."""
        fate = self.fate_of(pod)
        for status, delay in zip(("STARTING", "RUNNING"), self.delays):
            left.wait(delay)
            with self.lock:
                if left.is_set():
                    return
                self.become(pod, fate.status if fate.status and status == "RUNNING" else status)
        if pod.status != "RUNNING":
            return
        left.wait(fate.ssh_late)
        with self.lock:
            if left.is_set():
                return
            try:
                pod.host.start()
            except (RuntimeError, OSError):
                self.errors.append(traceback.format_exc())
                self.become(pod, "ERROR")
                return
        while not left.wait(0.1):
            with self.lock:
                if not left.is_set() and pod.host.exited():
                    self.stop(pod)

    def stop(self, pod):
        pod.left.set()
        self.become(pod, "EXITED")
        pod.host.kill()
