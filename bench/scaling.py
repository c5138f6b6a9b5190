#!/usr/bin/env python3
"""What bench/scaling does beside measuring: shapes, plain readers, what is kept of a step, plans.

    scaling.py machine OUT ENVIRONMENT           keep what machine measures
    scaling.py shape OUT KEY KIND CONFIG RESULT ...  write a model's config.json with as many layers as fit
    scaling.py readers BIN DEVICE P FOLDER       P plain readers at the same time: prints a line of JSON
    scaling.py record OUT STEP KIND WORK RESULT  keep what a step printed
    scaling.py plans OUT KEY PROGRAM DEVICE GB   `plan` at the rates measured

OUT/steps.jsonl has an object per finished step; of several with one name the last counts. Needs numpy and h5py.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

MIB, GB = 2**20, 1e9
READER_GB = 30  # that plain readers read together
FAST_GB_S = 1e6  # storage that takes no time
PLENTY_GB = "10000"  # of memory: all weights stay
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "n_routed_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "experts_per_token": 4,
    "vocab_size": 2048,
    "sliding_window": 32,
}
OF_THE_RUN = {"n_ranks", "config", "started", "finished"}  # root attributes that may differ
NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"


# --- what is kept ---


def load(out):
    """The steps by name."""
    lines = (out / "steps.jsonl").read_text().splitlines()
    return {step["step"]: step for step in map(json.loads, lines)}


def append(out, step):
    """All or nothing, whenever the machine is taken away."""
    path, new = out / "steps.jsonl", out / "steps.jsonl.new"
    old = path.read_text() if path.exists() else ""
    new.write_text(old + json.dumps(step) + "\n")
    os.replace(new, path)


def keep_machine(arguments):
    environment = dict(line.split("\t", 1) for line in arguments.environment.read_text().splitlines())
    number = sum(name.startswith("machine.") for name in load(arguments.out))
    append(arguments.out, {"step": f"machine.{number + 1}", "environment": environment})


# --- shapes ---


def cut(shape, layers):
    """The first layers of a config.json."""
    if not 0 < layers <= shape["num_hidden_layers"]:
        raise SystemExit(f"scaling.py: error: {layers} layers of {shape['num_hidden_layers']}: give --layers")
    shape = shape | {"num_hidden_layers": layers}
    for name, value in shape.items():
        if name == "layer_types":
            shape[name] = value[:layers]
    return shape


def plan(program, config, options):
    """The JSON of `plan` for a config.json; options: of the command line."""
    path = config.with_suffix(".plan.cfg")
    path.write_text(f'model: {{ path = "{config}"; }};\n')
    done = subprocess.run([program, "plan", path, "--json", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"scaling.py: error: {' '.join(map(str, done.args))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def fitting(arguments, shape):
    """Layers that fit; of those from files with embedding and head."""
    arguments.result.write_text(json.dumps(shape))
    stages = plan(arguments.program, arguments.result, [])["stage_bytes"]
    left = arguments.mib * MIB - (stages[0] + stages[-1] if arguments.kind == "streamed" else 0)
    fit = 0
    while fit < len(stages) - 2 and left >= stages[fit + 1]:
        left -= stages[fit + 1]
        fit += 1
    return fit - fit % arguments.multiple if fit > arguments.multiple else fit


def make_shape(arguments):
    name = f"{arguments.key}.{arguments.kind}.layers"
    shape = json.loads(arguments.config.read_text())
    all_layers = shape["num_hidden_layers"]
    if arguments.small:
        shape |= {key: value for key, value in SMALL.items() if key in shape}
    kept = load(arguments.out).get(name)
    layers = kept["layers"] if kept else arguments.layers or fitting(arguments, shape)
    shape = cut(shape, layers)
    arguments.result.write_text(json.dumps(shape))
    if not kept:
        append(arguments.out, {"step": name, "layers": layers, "of": all_layers, "shape": shape})


# --- plain readers ---


def deal(files, count):
    """Files for each reader: about READER_GB together, no file twice; where there are too few, all for everyone."""
    if len(files) < count:
        return [files] * count
    most = max(1, int(READER_GB * GB / count / max(file.stat().st_size for file in files)))
    return [files[i::count][:most] for i in range(count)]


def reader_lines(text, field):
    objects = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [o for o in objects if field in o]


def run_readers(arguments):
    """On GPUs bench_limits, from files to the GPU; else bench_stream_reader, which reads the whole checkpoint."""
    files = sorted(arguments.folder.glob("*.safetensors"))
    cuda = arguments.device == "cuda"
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    processes = []
    for i, own in enumerate(deal(files, arguments.count)):
        command = [arguments.bin / "bench_stream_reader", arguments.folder, "--device", "cpu", "--repeat", "3"]
        if cuda:
            command = [arguments.bin / "bench_limits", "--files", *own]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpus[i]} if cuda else {})
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return 1
    found = [reader_lines(text, "gb_per_s") for text in outputs]
    rates = [sum(one["gb_per_s"] for one in same) for same in zip(*found)]  # together, with as many threads each
    best = max(range(len(rates)), key=rates.__getitem__)
    print(json.dumps({"gb_per_s": rates[best], "threads": found[0][best]["readers"], "all": rates, "raw": found}))
    return 0


# --- what is kept of a step ---


def one(pattern, text):
    found = re.search(pattern, text)
    return found.groups() if found else None


def read_resident(text):
    seconds, spread = map(float, one(rf"ranks \d+: +{NUMBER} s \(\+-{NUMBER}\)", text))
    megabytes, transport, checksum = one(rf"{NUMBER} MB of messages with (\w+), checksum (\w+)", text)
    rows = one(rf"rows alone: {NUMBER} s a pass, {NUMBER} s a message of {NUMBER} MB", text)
    return {
        "seconds": seconds,
        "half_range": spread,
        "passes": [float(value) for value in re.findall(rf"pass \d+: {NUMBER} s", text)],
        "messages_mb": float(megabytes),
        "transport": transport,
        "checksum": checksum,
        "layers": [int(n) for n in one(r"layers of the ranks:((?: \d+)+)", text)[0].split()],
        "rows_alone": dict(zip(("pass_s", "message_s", "message_mb"), map(float, rows))) if rows else None,
    }


def read_run(work, name):
    """The seconds that measured.py and the run itself tell."""
    said = (work / f"{name}.err").read_text()
    told = one(rf"predicted {NUMBER} s, measured {NUMBER} s from .*? bound by (\w+)", said)
    outside = one(r"(outside the stream .*)", said)
    whole = json.loads((work / f"{name}.json").read_text())
    return {
        "predicted_s": float(told[0]),
        "seconds": float(told[1]),
        "bound_by": told[2],
        "whole_s": whole["seconds"],
        "peak_rss_bytes": whole["peak_rss_bytes"],
        "outside": outside[0] if outside else "",
    }


def digest_of(values):
    """Fields one by one: what lies between them in memory does not count."""
    digest = hashlib.sha256(f"{values.shape} {values.dtype}".encode())
    for part in [values[name] for name in values.dtype.names] if values.dtype.names else [values]:
        digest.update(repr(part.tolist()).encode() if part.dtype.hasobject else part.tobytes())
    return digest.hexdigest()[:32]


def read_result(path):
    """A digest of each dataset but /timing and of the root's attributes; the account of /timing by rank."""
    import h5py  # takes its time
    import numpy as np

    digests, rows = {}, 0
    with h5py.File(path) as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in sorted(set(names) - {"timing"}):
            values = np.asarray(file[name][()])
            rows += len(values) if values.dtype.names else 0
            digests[name] = digest_of(values)
        attributes = {name: str(value) for name, value in sorted(file.attrs.items()) if name not in OF_THE_RUN}
        digests["attributes"] = hashlib.sha256(json.dumps(attributes).encode()).hexdigest()[:32]
        timing = file["timing"][()]
    ranks = []
    for rank in range(int(timing["rank"].max()) + 1):
        own = timing[timing["rank"] == rank]
        ranks.append({name: float(own[name].sum()) for name in ("bytes_read", "read", "copy", "compute", "wait")})
    order = timing["rank"][np.argsort(timing["layer"], kind="stable")]
    return {"digests": digests, "rows": rows, "ranks": ranks, "boundaries": int((np.diff(order) != 0).sum())}


def record(arguments):
    out, name, kind, work = arguments.out, arguments.name, arguments.kind, arguments.work
    step = {"step": name, "kind": kind}
    commands = [line.split("\t", 1) for line in (work / "commands").read_text().splitlines()]
    step["command"] = [line for own, line in commands if own == name][-1]
    if kind == "resident":
        step |= read_resident((work / name).read_text())
    elif kind == "lines":
        step |= json.loads((work / name).read_text())
    else:
        step |= read_run(work, name)
        if kind == "streamed":
            step |= read_result(arguments.result)
    append(out, step)
    return 0


# --- plans at the rates measured ---


def key_of(model):
    """As in the steps' names, of a name or of a config.json's path."""
    return pathlib.PurePath(model).name.removesuffix(".json")


def lists(settings):
    return [[int(n) for n in settings[name].split()] for name in ("ranks", "sequences")]


def read_settings(out):
    return dict(line.split("\t", 1) for line in (out / "settings").read_text().splitlines())


def plan_one(arguments, steps, kind, count, sequences, rates, more):
    """rates: GB/s and TFLOP/s."""
    shape = steps[f"{arguments.key}.{kind}.layers"]["shape"]
    settings = read_settings(arguments.out)
    changes = [
        f"engine.device={arguments.device}",
        "engine.micro_batch=1",
        f"engine.threads={settings['threads']}",
        f"data.sequences={sequences}",
        f"data.length={settings['length']}",
        *more,
    ]
    options = ["--gpus", str(count), "--bandwidth", f"{rates[0]:.9g}", "--tflops", f"{rates[1]:.9g}"]
    for change in changes:
        options += ["-s", change]
    if kind == "streamed" and (memory := float(settings["budget"]) or float(arguments.gb)):
        options += ["--vram", f"{memory:.3f}"]
    if kind == "resident":
        options += ["--vram", PLENTY_GB]
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "config.json"
        config.write_text(json.dumps(shape))
        made = plan(arguments.program, config, options)
    return {key: made[key] for key in ("time", "blocks", "partition", "reason", "ranks", "stage_flops", "stage_bytes")}


def make_plans(arguments):
    """Every plan whose rates are known: those of one rank, and of as many plain readers as ranks."""
    out, key = arguments.out, arguments.key
    steps = load(out)
    ranks, sequences = lists(read_settings(out))
    tflops = None
    for n in sequences:
        base = steps.get(f"{key}.resident.{n}.1")
        if not base:
            continue
        alone = ["analysis.perplexity=false", "engine.partition=contiguous"]
        flops = sum(plan_one(arguments, steps, "resident", 1, n, (FAST_GB_S, 1), alone)["stage_flops"])
        rate = 1e-12 * flops / base["seconds"]
        tflops = tflops or rate
        for count in ranks:
            if f"{key}.resident.{n}.{count}" in steps:
                made = plan_one(arguments, steps, "resident", count, n, (FAST_GB_S, rate), alone)
                append(out, {"step": f"{key}.plan-resident.{n}.{count}", "tflops": rate} | made)
    for count in ranks:
        reader = steps.get(f"{key}.reader.{count}")
        if reader and tflops:
            made = plan_one(arguments, steps, "streamed", count, sequences[0], (reader["gb_per_s"], tflops), [])
            append(out, {"step": f"{key}.plan-streamed.{count}", "tflops": tflops} | made)
    return 0


def parse_arguments():
    path = pathlib.Path
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(name, function, *positional):
        own = commands.add_parser(name)
        for argument, kind in positional:
            own.add_argument(argument, type=kind)
        own.set_defaults(function=function)
        return own

    command("machine", keep_machine, ("out", path), ("environment", path))
    shape = command("shape", make_shape, ("out", path), ("key", str), ("kind", str), ("config", path), ("result", path))
    shape.add_argument("--program", type=path)
    for name in ("--mib", "--multiple", "--layers"):
        shape.add_argument(name, type=int)
    shape.add_argument("--small", action="store_true")
    command("readers", run_readers, ("bin", path), ("device", str), ("count", int), ("folder", path))
    command("record", record, ("out", path), ("name", str), ("kind", str), ("work", path), ("result", path))
    command("plans", make_plans, ("out", path), ("key", str), ("program", path), ("device", str), ("gb", float))
    return parser.parse_args()


if __name__ == "__main__":
    chosen = parse_arguments()
    sys.exit(chosen.function(chosen))
