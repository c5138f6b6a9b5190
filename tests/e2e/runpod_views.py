"""Pods, clusters, GPU types and bills as RunPod's API shows them."""

import contextlib
import getpass
import time

from runpod_schema import Problem
from runpod_state import CUDA, LEVELS, MOVES, stamp


def show_pod(state, pod):
    request = pod.request
    running = pod.status == "RUNNING"
    ports = request.get("ports", [])
    direct = None
    if running and "22/tcp" in ports:
        direct = {"host": "127.0.0.1", "port": pod.host.port, "username": getpass.getuser()}
        direct["command"] = f"ssh {direct['username']}@127.0.0.1 -p {pod.host.port}"
    proxy = None
    if pod.status != "PROVISIONING":
        user = f"{pod.id}-64411eb2"
        proxy = {"host": "127.0.0.1", "port": 1, "username": user, "command": f"ssh {user}@127.0.0.1"}
    shown = {
        "id": pod.id,
        "name": pod.name,
        "image": request["image"],
        "args": request.get("args", ""),
        "disk": request.get("disk", 20),
        "ports": ports,
        "env": request.get("env", {}),
        "registry": request.get("registry"),
        "status": pod.status,
        "actions": MOVES[pod.status],
        "mounts": request.get("mounts", {}),
        "gpu": {"id": request["gpu"]["id"], "count": request["gpu"].get("count", 1)},
        "cloud": request.get("cloud", "SECURE"),
        "dataCenterId": None if pod.status == "PROVISIONING" else pod.place,
        "cudaVersion": None if pod.status == "PROVISIONING" else CUDA,
        "ssh": {"proxy": proxy, "direct": direct},
        "template": None,
        "cost": state.rate(pod),
        "locked": False,
        "globalNetworking": {"enabled": False},
        "runtime": None,
        "createdAt": stamp(pod.created),
        "startedAt": stamp(pod.started),
    }
    if running:
        port = {"private": 22, "public": pod.host.port, "type": "tcp", "ip": "127.0.0.1"}
        shown["runtime"] = {"uptime": int(time.time() - pod.started), "ports": [port] if direct else []}
    if pod.cluster:
        placed = pod.status != "PROVISIONING"
        shown["cluster"] = {"id": pod.cluster.id, "rank": pod.rank if placed else None}
        if placed:
            shown["cluster"]["ip"] = f"{pod.cluster.network}.{pod.rank + 2}"
        if pod.cluster.request["type"] == "SLURM":
            shown["cluster"]["role"] = "SLURM_COMPUTE" if pod.rank else "SLURM_CONTROLLER"
    return shown


def show_cluster(cluster):
    counts = {}
    for pod in cluster.pods:
        counts[pod.status] = counts.get(pod.status, 0) + 1
    shown = {
        "id": cluster.id,
        "name": cluster.name,
        "type": cluster.request["type"],
        "compute": cluster.request["compute"],
        "pods": {"total": len(cluster.pods), "byStatus": counts},
        "createdAt": stamp(cluster.created),
    }
    first = cluster.pods[0]
    if first.status != "PROVISIONING":
        shown["dataCenterId"] = first.place
        shown["network"] = {"cidr": f"{cluster.network}.0/24", "vxlanId": 1001}
        shown["primary"] = {"podId": first.id, "status": first.status}
        if first.status == "RUNNING" and "22/tcp" in first.request.get("ports", []):
            shown["primary"]["sshEndpoint"] = f"127.0.0.1:{first.host.port}"
    return shown


def show_gpu(state, gpu, query):
    secure, community = bool(gpu.secure), bool(gpu.community)
    shown = {
        "id": gpu.id,
        "name": gpu.name,
        "pool": gpu.pool,
        "manufacturer": gpu.id.split()[0],
        "memory": gpu.memory,
        "secure": secure,
        "community": community,
        "price": {"secure": gpu.secure, "community": gpu.community},
        "maxCount": {"secure": gpu.most[0], "community": gpu.most[1]},
    }
    if "include" not in query:
        return shown
    cloud = query.get("cloud", "SECURE")
    fits = query.get("count", 1) <= gpu.most[0 if cloud == "SECURE" else 1] and state.price_of(gpu, cloud)
    fits = fits and state.has_cuda(query.get("minCudaVersion", "0.0"))
    offered = sorted(gpu.stock.items(), key=lambda entry: entry[0]) if fits else []
    if "countryCodes" in query:
        offered = [entry for entry in offered if entry[0][:2] in query["countryCodes"]]
    shown["availability"] = LEVELS[max((level for _, level in offered), default=0)]
    if offered and shown["availability"] != "NONE":
        shown["dataCenters"] = [
            {"id": place, "name": f"Data center {place}", "availability": LEVELS[level]} for place, level in offered
        ]
    if shown["manufacturer"] == "NVIDIA":
        shown["cudaVersions"] = [{"version": CUDA, "available": shown["availability"] != "NONE"}]
    return shown


def show_bill(query, what, groups, more):
    """Everything in one bucket, the current one."""
    if "lastN" in query and {"startTime", "endTime"} & set(query):
        raise Problem(400, "lastN and startTime/endTime are mutually exclusive")
    times = {"startTime": stamp(time.time() // 86400 * 86400), "endTime": stamp((time.time() // 86400 + 1) * 86400)}
    records = [
        times | {what: name, "totalAmount": dollars, "gpuAmount": dollars} | more
        for name, dollars in groups.items()
        if query.get(what, name) == name
    ]
    total = sum(record["totalAmount"] for record in records)
    metadata = {
        "query": times | {"bucketSize": query.get("bucketSize", "day"), what: query.get(what)},
        "recordCount": len(records),
        "totals": {"totalAmount": total, "gpuAmount": total} | more,
        f"unique{what[0].upper()}{what[1:-2]}Count": len(records),
    }
    return {"records": records, "metadata": metadata}


def log_lines(pod):
    """[(time, source, line)] of a pod, in order."""
    lines = [(when, "system", line) for when, line in pod.lines]
    path = pod.host.folder / "container.log"
    with contextlib.suppress(OSError):  # there is none yet, or none any more
        when = path.stat().st_mtime
        lines += [(when, "container", line) for line in path.read_text(errors="replace").splitlines()]
    return sorted(lines, key=lambda entry: entry[0])
