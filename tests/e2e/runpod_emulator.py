"""RunPod's REST API v2 on loopback. Every request is checked against its specification (runpod_schema.json), pods and
clusters are real state with delays, each with an sshd (pod_host.py), and calls fail when they are told to.

By hand:  python tests/e2e/runpod_emulator.py --port 8088 --key rpa_12345678 --public-key ~/.ssh/id_ed25519.pub
          export MOE_POD_API=http://127.0.0.1:8088 RUNPOD_API_KEY=rpa_12345678"""

import argparse
import contextlib
import dataclasses
import pathlib
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import typing
import urllib.parse

import runpod_http
import runpod_views
from runpod_schema import Problem
from runpod_state import LEVELS, MOVES, NO_CAPACITY, PLACES, Cluster, State

FAILURES = ("429", "500", "502", "hang", "hang after", "drop", "reset", "garbage", "empty", "empty list", "410")


@dataclasses.dataclass
class Fault:
    """Calls of that method and path (regular expressions of the whole) fail, from the `first` on, `times` of them."""

    method: str
    path: str
    kind: str
    first: int = 1
    times: int = 1
    seconds: int = 1  # of a 429: Retry-After
    seen: int = 0


class Call(typing.NamedTuple):
    time: float
    method: str
    path: str  # with the query
    status: typing.Union[int, str]  # or the fault's kind
    key: str  # "account" or the pod's id, "?" if that was not looked at


class Emulator(State):
    """with Emulator(folder, key, ssh_keys) as emulator: emulator.url ..."""

    def __init__(
        self,
        folder,
        key,
        ssh_keys,
        port=0,
        provisioning=0.1,
        starting=0.1,
        container=None,
        session=None,
        quota=100000,
        window=60,
    ):
        """provisioning, starting: seconds in these states; container: more variables of the containers, as of their
        image; session: of ssh sessions in them; quota: calls in a window of that many seconds."""
        super().__init__(folder, ssh_keys, provisioning, starting, container, session)
        self.key = key
        self.quota, self.window = quota, window
        self.counted = (0, 0)  # number of the window, calls in it
        self.faults, self.calls = [], []
        self.observe = (
            lambda when, method, path: None
        )  # called "before" a call is looked at, "after" it was carried out
        self.stopping = threading.Event()
        self.server = runpod_http.Server(("127.0.0.1", port), runpod_http.Handler)
        self.server.emulator = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        with self.lock:
            for pod in list(self.pods.values()):
                self.remove(pod)
            self.clusters.clear()

    def fail(self, method, path, kind, first=1, times=1, seconds=1):
        assert kind in FAILURES, kind
        with self.lock:
            self.faults.append(Fault(method, path, kind, first, times, seconds))

    # --- operations: (parts of the path, query, body) -> (status, body) ---

    def owned_pod(self, parts):
        pod = self.pods.get(parts["id"])
        if pod is None:
            raise Problem(404, f"pod {parts['id']} not found")
        return pod

    def owned_cluster(self, parts):
        cluster = self.clusters.get(parts["id"])
        if cluster is None:
            raise Problem(404, f"cluster {parts['id']} not found")
        return cluster

    def getSshKeys(self, parts, query, body):
        return 200, {"keys": self.ssh_keys}

    def updateSshKeys(self, parts, query, body):
        self.ssh_keys = body["keys"]
        return 200, {"keys": self.ssh_keys}

    def listPods(self, parts, query, body):
        members = query.get("includeClusterPods", False)
        return 200, {
            "pods": [runpod_views.show_pod(self, pod) for pod in self.pods.values() if members or not pod.cluster]
        }

    def createPod(self, parts, query, body):
        if ("gpu" in body) == ("cpu" in body):
            raise Problem(400, "exactly one of gpu or cpu must be set")
        if "cpu" in body or "templateId" in body:
            raise Problem(400, "the emulator has neither CPU pods nor templates")
        self.check_container(body)
        if body.get("registry"):
            raise Problem(400, "registry credential not found")
        gpu = body["gpu"]
        if gpu.get("allowedCudaVersions") and "minCudaVersion" in gpu:
            raise Problem(400, "allowedCudaVersions and minCudaVersion are mutually exclusive")
        if not self.has_cuda(gpu.get("minCudaVersion", "0.0")):
            raise Problem(400, NO_CAPACITY)
        place, price = self.place(
            gpu["id"], gpu.get("count", 1), body.get("cloud", "SECURE"), body.get("dataCenterIds", [])
        )
        return 201, runpod_views.show_pod(self, self.make_pod(body, price, place))

    def check_container(self, body):
        wrong = [port for port in body.get("ports", []) if not re.fullmatch(r"\d+/(http|tcp|udp)", port)]
        if wrong:
            raise Problem(400, f"malformed port {wrong[0]}")
        if len(body.get("mounts", {})) > 1:
            raise Problem(400, "mounts.persistent and mounts.network are mutually exclusive")
        for mount in body.get("mounts", {}).get("network", []):
            if mount["volumeId"] not in self.volumes:
                raise Problem(400, "network volume not found")

    def getPod(self, parts, query, body):
        return 200, runpod_views.show_pod(self, self.owned_pod(parts))

    def updatePod(self, parts, query, body):
        pod = self.owned_pod(parts)
        if pod.cluster:
            raise Problem(409, "pod belongs to a cluster and cannot be modified via the pod endpoints")
        if set(body) - {"name", "env"}:
            raise Problem(400, "the emulator changes name and env only")
        pod.request = pod.request | body
        return 200, runpod_views.show_pod(self, pod)

    def deletePod(self, parts, query, body):
        pod = self.owned_pod(parts)
        if pod.cluster:
            raise Problem(409, "pod belongs to a cluster and cannot be terminated via the pod endpoints")
        self.remove(pod)
        return 204, None

    def podAction(self, parts, query, body):
        pod, action = self.owned_pod(parts), body["action"]
        if pod.cluster:
            raise Problem(409, "pod belongs to a cluster and cannot be modified via the pod endpoints")
        if action not in MOVES[pod.status]:
            raise Problem(409, f"action {action} is not valid for a pod that is {pod.status}")
        if action == "terminate":
            self.remove(pod)
            return 204, None
        if action in ("stop", "restart"):
            self.stop(pod)
        if action in ("start", "restart"):
            self.become(pod, "STARTING")
            self.start(pod)
        return 200, runpod_views.show_pod(self, pod)

    def listClusters(self, parts, query, body):
        return 200, {"clusters": [runpod_views.show_cluster(cluster) for cluster in self.clusters.values()]}

    def createCluster(self, parts, query, body):
        compute = body["compute"]
        if "image" not in body:
            raise Problem(400, "image is required")
        self.check_container(body)
        place, price = self.place(
            compute["gpuTypeId"], compute["gpuCountPerPod"], "SECURE", body.get("dataCenterIds", [])
        )
        network = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        cluster = Cluster(self.new_id(), body, time.time(), [], network)
        member = {name: value for name, value in body.items() if name not in ("compute", "type")}
        member["gpu"] = {"id": compute["gpuTypeId"], "count": compute["gpuCountPerPod"]}
        for rank in range(compute["podCount"]):
            request = member | {"name": f"{body['name']}-{rank}"}
            cluster.pods.append(self.make_pod(request, price, place, cluster, rank))
        self.clusters[cluster.id] = cluster
        self.cluster_history.append(cluster)
        return 201, runpod_views.show_cluster(cluster)

    def getCluster(self, parts, query, body):
        return 200, runpod_views.show_cluster(self.owned_cluster(parts))

    def updateCluster(self, parts, query, body):
        cluster = self.owned_cluster(parts)
        cluster.request = cluster.request | body
        return 200, runpod_views.show_cluster(cluster)

    def deleteCluster(self, parts, query, body):
        cluster = self.owned_cluster(parts)
        del self.clusters[cluster.id]
        for pod in cluster.pods:
            self.remove(pod)
        return 204, None

    def listClusterPods(self, parts, query, body):
        return 200, {"pods": [runpod_views.show_pod(self, pod) for pod in self.owned_cluster(parts).pods]}

    @staticmethod
    def check_availability(query):
        if "include" in query:
            if "product" not in query:
                raise Problem(400, "include=AVAILABILITY requires product")
            if "cudaVersions" in query and "minCudaVersion" in query:
                raise Problem(400, "cudaVersions and minCudaVersion are mutually exclusive")
        elif query:
            raise Problem(400, f"{sorted(query)[0]} is valid only with include=AVAILABILITY")

    def listGpuTypes(self, parts, query, body):
        self.check_availability(query)
        shown = [runpod_views.show_gpu(self, gpu, query) for gpu in self.gpus.values()]
        return 200, {"gpus": [gpu for gpu in shown if "countryCodes" not in query or "dataCenters" in gpu]}

    def getGpuType(self, parts, query, body):
        self.check_availability(query)
        if parts["id"] not in self.gpus:
            raise Problem(404, f"gpu type {parts['id']} not found")
        return 200, runpod_views.show_gpu(self, self.gpus[parts["id"]], query)

    def listDataCenters(self, parts, query, body):
        centers = []
        for place, region in PLACES.items():
            center = {"id": place, "name": f"Data center {place}", "region": region, "globalNetwork": True}
            center |= {"networkVolumeTypes": ["STANDARD"], "compliance": ["GDPR"] if region == "EUROPE" else []}
            if "GPU_AVAILABILITY" in query.get("include", []):
                center["gpuAvailability"] = [
                    {"id": gpu.id, "name": gpu.name, "availability": LEVELS[gpu.stock[place]]}
                    for gpu in self.gpus.values()
                    if place in gpu.stock
                ]
            if region in query.get("regions", PLACES.values()):
                centers.append(center)
        return 200, {"dataCenters": centers}

    def listPodBilling(self, parts, query, body):
        groups = {pod.id: self.dollars(pod) for pod in self.history if not pod.cluster}
        return 200, runpod_views.show_bill(query, "podId", groups, {"cpuAmount": 0, "diskAmount": 0})

    def listClusterBilling(self, parts, query, body):
        groups = {cluster.id: sum(self.dollars(pod) for pod in cluster.pods) for cluster in self.cluster_history}
        return 200, runpod_views.show_bill(query, "clusterId", groups, {"diskAmount": 0, "networkingAmount": 0})

    # --- who calls, how often, and what fails ---

    def authorize(self, header, operation, parts):
        """Name of who it is."""
        scheme, _, token = (header or "").partition(" ")
        if scheme != "Bearer" or not token:
            raise Problem(401, "missing bearer token")
        if token == self.key:
            return "account"
        for pod in self.history:
            if token == pod.key:
                if pod.ended:
                    raise Problem(401, "invalid bearer token")
                own = "id" in parts and parts["id"] in (pod.id, pod.cluster and pod.cluster.id)
                if not own or operation["operationId"] == "updatePod":
                    raise Problem(403, "access denied")
                return pod.id
        raise Problem(401, "invalid bearer token")

    def count_call(self):
        """Rate-limit headers; 429 when the window's quota is used up."""
        number, left = int(time.time() // self.window), self.window - time.time() % self.window
        if self.counted[0] != number:
            self.counted = (number, 0)
        self.counted = (number, self.counted[1] + 1)
        rest = self.quota - self.counted[1]
        headers = {
            "RateLimit": f'"minute";r={max(0, rest)};t={int(left) + 1}, "day";r=999999;t=86399',
            "RateLimit-Policy": f'"minute";q={self.quota};w={self.window}, "day";q=1000000;w=86400',
        }
        if rest < 0:
            raise Problem(
                429, "rate limit exceeded for the minute window", **headers, **{"Retry-After": str(int(left) + 1)}
            )
        return headers

    def note_call(self, method, path, status, who):
        self.calls.append(Call(time.time(), method, path, status, who))

    def fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.fullmatch(fault.path, path):
                    fault.seen += 1
                    if fault.first <= fault.seen < fault.first + fault.times:
                        return fault
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8088)
    parser.add_argument("--key", default="rpa_EMULATED", help="the account's API key")
    parser.add_argument("--public-key", action="append", default=[], help="file of a registered ssh key")
    parser.add_argument("--provisioning", type=float, default=1, help="seconds in this state")
    parser.add_argument("--starting", type=float, default=1)
    parser.add_argument("--container", action="append", default=[], help="NAME=VALUE for the containers' environment")
    parser.add_argument("--volume", action="store_true", help="make a network volume")
    parser.add_argument("--fail", nargs=3, action="append", default=[], metavar=("METHOD", "PATH", "KIND"))
    options = parser.parse_args()
    keys = [pathlib.Path(path).read_text().strip() for path in options.public_key]
    folder = tempfile.mkdtemp(prefix="moe-pod-")
    container = dict(entry.split("=", 1) for entry in options.container)
    with contextlib.suppress(KeyboardInterrupt):
        with Emulator(
            folder, options.key, keys, options.port, options.provisioning, options.starting, container
        ) as emulator:
            for method, path, kind in options.fail:
                emulator.fail(method, path, kind)
            volume = f"  network volume {emulator.add_volume()}" if options.volume else ""
            print(f"{emulator.url}  pods in {folder}{volume}", flush=True)
            seen = 0
            while True:
                time.sleep(0.2)
                for call in emulator.calls[seen:]:
                    print(f"{call.method} {urllib.parse.unquote(call.path)} {call.status} ({call.key})", flush=True)
                seen = len(emulator.calls)
                while emulator.errors:
                    print(emulator.errors.pop(0), file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
