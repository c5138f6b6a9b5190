#!/usr/bin/env python3
"""Run a command and write what it took: seconds, memory of the host and of the GPUs.

    measured.py RESULT.json [--gpus IDS] -- COMMAND...

RESULT.json gets "seconds", "status", "peak_rss_bytes" (the largest of its processes) and, with --gpus, for each of these
GPUs (as nvidia-smi numbers them) "gpu_before_bytes" and "gpu_peak_bytes": all memory in use, sampled every 20 ms or as
fast as nvidia-smi can; "gpu_samples" says how often. Exit status: the command's.
"""

import json
import resource
import shutil
import subprocess
import sys
import threading
import time

PERIOD_MS = 20


def query(gpus, *more):
    return ["nvidia-smi", f"--id={gpus}", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits", *more]


def parse(line):
    index, mib = line.split(",")
    return index.strip(), int(mib) * 2**20


class Sampler(threading.Thread):
    """Peak memory of each GPU until `stop`."""

    def __init__(self, gpus):
        super().__init__(daemon=True)
        first = subprocess.run(query(gpus), capture_output=True, text=True, check=True).stdout
        self.before = dict(map(parse, first.splitlines()))
        self.peak = dict(self.before)
        self.samples = 0
        command = query(gpus, "-lms", str(PERIOD_MS))
        if shutil.which("stdbuf"):
            command = ["stdbuf", "-oL", *command]  # a pipe would hold samples back
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.start()

    def run(self):
        for line in self.process.stdout:
            try:
                index, used = parse(line)
            except ValueError:  # the last line may be cut off
                continue
            self.peak[index] = max(self.peak.get(index, 0), used)
            self.samples += 1

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.join()


def parse_arguments():
    """Result, GPUs or None, command."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command = sys.argv[1:split], sys.argv[split + 1 :]
    if not command or len(options) not in (1, 3) or options[1:2] not in ([], ["--gpus"]):
        print("usage: measured.py RESULT.json [--gpus IDS] -- COMMAND...", file=sys.stderr)
        sys.exit(2)
    return options[0], options[2] if len(options) == 3 else None, command


def main():
    path, gpus, command = parse_arguments()
    sampler = Sampler(gpus) if gpus else None
    begin = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - begin
    result = {
        "seconds": seconds,
        "status": status,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
    if sampler:
        sampler.stop()
        result["gpu_before_bytes"] = sampler.before
        result["gpu_peak_bytes"] = sampler.peak
        result["gpu_samples"] = sampler.samples
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
