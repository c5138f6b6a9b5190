#!/usr/bin/env python3
"""Make the Markdown tables and the JSON file of bench/stream.sh from the output of its steps.

    stream_table.py FOLDER RESULT.json

FOLDER holds tab-separated `environment` (name, value) and `commands` (step, command line), and of each step its output
and, where it was measured, STEP.json (measured.py) and STEP.err. Steps that did not run are left out, those that failed
are shown as such. RESULT.json must not exist.
"""

import json
import pathlib
import re
import statistics
import sys

from gpu_table import json_lines, main, pairs, print_table, read_forward

# Name of a run's steps, checkpoint, plain reader's step, what it is.
RUNS = (
    ("run", "model", "limits", "from memory"),
    ("budget", "model", "limits", "from memory, {budget} GB of GPU memory"),
    ("two-free", "model", "limits", "two GPUs"),
    ("two-contiguous", "model", "limits", "two GPUs, {two-budget} GB each, contiguous"),
    ("two-interleaved", "model", "limits", "two GPUs, {two-budget} GB each, interleaved"),
    ("two-few-contiguous", "model", "limits", "two GPUs, {two-budget} GB, {two-readers} readers each, contiguous"),
    ("two-few-interleaved", "model", "limits", "two GPUs, {two-budget} GB, {two-readers} readers each, interleaved"),
    ("large", "large", "large-limits", "from memory, {large-budget} GB of GPU memory"),
    ("disk", "disk", "disk-limits", "from disk"),
)
COMPARED = re.compile(r"predicted (\S+) s, measured (\S+) s from the first read")


def read_runs(folder, name):
    """The repeats of a run; those that failed have a "status" other than 0."""
    found = []
    for path in sorted(folder.glob(f"{name}-[0-9]*.json")):
        run = json.loads(path.read_text())
        said = (folder / f"{path.stem}.err").read_text().splitlines()
        run["said"] = [line for line in said if ": layer " not in line][-5:]
        compared = [values for line in said for values in COMPARED.findall(line)]
        run["predicted_s"], run["stream_s"] = map(float, compared[-1]) if compared else (None, None)
        found.append(run)
    return found


def collect(folder):
    environment = pairs(folder / "environment")
    commands = pairs(folder / "commands")
    synths = {path.stem[len("synth-") :]: json.loads(path.read_text()) for path in folder.glob("synth-*.json")}
    return {
        "environment": environment,
        "commands": commands,
        "synth": synths,
        "limits": {name: json_lines(folder / name) for name in commands if name.endswith("limits")},
        "forward": read_forward(folder / "forward") if (folder / "forward").exists() else None,
        "runs": {name: read_runs(folder, name) for name, *_ in RUNS if f"{name}-1" in commands},
        "peer": json_lines(folder / "peer"),
    }


def best_reader(data, name):
    files = [o for o in data["limits"].get(name, []) if o["kind"] == "file"]
    return max(files, key=lambda o: o["gb_per_s"], default=None)


def checkpoint_bytes(data, key):
    return int(data["environment"].get(f"bytes_{key}", 0))


def model_text(data, key):
    name = pathlib.PurePath(data["environment"].get(f"model_{key}", "?")).stem
    return f"{name}, {data['environment'].get(f'layers_{key}', '?')} layers"


def resident_seconds(data, key):
    """The pass with resident weights, of the model that it was measured for."""
    return data["forward"]["with_statistics_s"] if key == "model" and data["forward"] else 0


def lower_bound(data, key, limits, ranks):
    """The larger of reading at the plain reader's rate and computing: seconds and which of them; None if not known."""
    reader = best_reader(data, limits)
    if not reader or ranks > 1:  # the plain reader feeds one GPU
        return None
    reading, computing = checkpoint_bytes(data, key) / 1e9 / reader["gb_per_s"], resident_seconds(data, key)
    return max((reading, "reading"), (computing, "computing"))


def gigabytes(values):
    return f"{max(values) / 1e9:.2f}" if values else ""


def run_row(data, name, key, limits, what):
    done = [run for run in data["runs"][name] if run["status"] == 0]
    title = f"{model_text(data, key)}, {what.format(**data['environment'])}"
    size = checkpoint_bytes(data, key) / 1e9
    if not done:
        return [title, f"{size:.1f}", "failed", *[""] * 8]
    seconds = statistics.median(run["seconds"] for run in done)
    spread = max(run["seconds"] for run in done) - min(run["seconds"] for run in done)
    bound = lower_bound(data, key, limits, 2 if name.startswith("two") else 1)
    told = [run for run in done if run["stream_s"]]
    stream = statistics.median(run["stream_s"] for run in told) if told else None
    off = [f"{run['predicted_s'] / run['stream_s']:.2f}" for run in told]
    return [
        title,
        f"{size:.1f}",
        f"{seconds:.2f} ± {spread / 2:.2f}",
        f"{size / seconds:.1f}",
        f"{bound[0]:.2f} ({bound[1]})" if bound else "",
        f"{seconds / bound[0]:.2f}" if bound else "",
        f"{stream:.2f}" if stream else "",
        f"{stream / bound[0]:.2f}" if stream and bound else "",
        f"{min(off)} to {max(off)}" if off else "",
        gigabytes([peak for run in done for peak in run.get("gpu_peak_bytes", {}).values()]),
        gigabytes([run["peak_rss_bytes"] for run in done]),
    ]


def print_heading(data):
    environment = data["environment"]
    versions = next((o for objects in data["limits"].values() for o in objects if o["kind"] == "versions"), {})
    print(f"### {environment.get('device', 'no GPU')}, {environment['date'][:10]}\n")
    print(
        f"Driver {environment.get('driver', '(none)')}, CUDA {versions.get('cuda_runtime', '?')}, "
        f"{environment['processors']} processors, commit {environment['commit']}. Random weights of the published "
        f"shapes in bf16, {environment['sequences']} x {environment['length']} random tokens; medians: of whole "
        "runs, from the start of the process to its end, with half the range, and of the stream, from its first read to "
        "the last product.\n"
    )


def print_runs(data):
    header = ["run", "GB", "whole, s", "GB/s", "lower bound, s", "whole / bound", "stream, s", "stream / bound"]
    header += ["predicted / stream", "GPU peak, GB", "host peak, GB"]
    rows = [run_row(data, *run) for run in RUNS if run[0] in data["runs"]]
    if not rows:
        return
    print_table(header, rows)
    print(
        "Lower bound: the larger of the checkpoint's bytes at the best rate of the plain reader and the pass with "
        "resident weights, in this run. GPU peak: all memory in use on the GPU as nvidia-smi sees it; host peak: the "
        "largest resident set.\n"
    )


def median_seconds(data, name, key="seconds"):
    return statistics.median(run[key] for run in data["runs"].get(name, []) if run["status"] == 0 and run[key])


def ratio_rows(data):
    """Pairs of runs that are to be compared."""
    rows = []
    for one, other, what in (
        ("budget", "run", "within the budget / without"),
        ("two-free", "run", "two GPUs / one"),
        ("two-interleaved", "two-contiguous", "interleaved / contiguous"),
        ("two-few-interleaved", "two-few-contiguous", "interleaved / contiguous, few readers"),
    ):
        try:
            keys = ("seconds", "stream_s")
            whole, stream = (median_seconds(data, one, key) / median_seconds(data, other, key) for key in keys)
            rows.append([what, f"{whole:.2f} x, the stream {stream:.2f} x"])
        except statistics.StatisticsError:  # one of them did not run
            continue
    return rows


def peer_rows(data):
    rows = []
    for o in data["peer"]:
        if o["kind"] == "checkpoint":
            rate = f"{checkpoint_bytes(data, 'model') / 1e9 / o['load_s']:.1f} GB/s"
            rows.append([f"peer: load ({rate})", f"{o['load_s']:.2f}"])
            rows.append([f"peer: first pass, batch {o['batch']}", f"{o['first_pass_s']:.2f}"])
            rows.append(["peer: both", f"{o['total_s']:.2f}"])
            if any(run["status"] == 0 for run in data["runs"].get("run", [])):
                rows.append(["peer / ours", f"{o['total_s'] / median_seconds(data, 'run'):.2f} x"])
        elif o["kind"] == "failed":
            rows.append([f"peer: batch {o['batch']}", "failed"])
    if not rows and "peer" in data["commands"]:
        rows.append(["peer", "failed"])
    return rows


def limit_rows(data):
    rows = []
    for name, objects in data["limits"].items():
        files = [o for o in objects if o["kind"] == "file"]
        for o in files:
            what = f"{o['name']}, {o['bytes'] / 1e9:.0f} GB, {o['readers']} readers"
            rows.append([what, f"{o['gb_per_s']:.1f} GB/s"])
        if not files:
            rows.append([name, "failed"])
    if data["forward"]:
        rows.append(["pass with resident weights, with statistics", f"{data['forward']['with_statistics_s']:.3f} s"])
    elif "forward" in data["commands"]:
        rows.append(["pass with resident weights", "failed"])
    for key, synth in data["synth"].items():
        size = checkpoint_bytes(data, key) / 1e9
        text = f"{size / synth['seconds']:.1f} GB/s" if synth["status"] == 0 else "failed"
        rows.append([f"synth: {model_text(data, key)}, {synth['seconds']:.0f} s", text])
    return rows


def print_tables(data):
    print_heading(data)
    print_runs(data)
    if rows := ratio_rows(data) + peer_rows(data):
        print_table(["compared", ""], rows)
    if rows := limit_rows(data):
        print_table(["limit of this machine", ""], rows)


if __name__ == "__main__":
    sys.exit(main(collect, print_tables))
