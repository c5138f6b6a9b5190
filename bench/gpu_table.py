#!/usr/bin/env python3
"""Make the Markdown tables and the JSON file of bench/gpu.sh from the output of its steps.

    gpu_table.py FOLDER RESULT.json

FOLDER holds tab-separated `environment` (name, value) and `commands` (step, command line), and each step's output:
`limits` and `dense-again` (bench_limits), `forward-MODEL` (bench_forward), `peer-MODEL` (peer_transformers.py). Steps
that failed or did not run are shown as such. RESULT.json must not exist.
"""

import json
import pathlib
import re
import sys

DENSE = "dense 8192 cubed"
FORWARD = re.compile(
    r"(?P<architecture>\S+) +(?P<layers>\d+) layers +(?P<sequences>\d+) x (?P<length>\d+) micro +(?P<micro>\d+): +"
    r"(?P<median_s>[\d.]+) s \(\+-(?P<half_spread_s>[\d.]+)\) +(?P<tflops>[\d.]+) TFLOP/s; "
    r"with statistics +(?P<with_statistics_s>[\d.]+) s"
)


def pairs(path):
    return dict(line.split("\t", 1) for line in path.read_text().splitlines())


def json_lines(path):
    """The JSON objects of a step's output, also of one that was stopped half-way."""
    objects = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return objects


def read_forward(path):
    match = FORWARD.search(path.read_text())
    if not match:
        return None
    return {key: value if key == "architecture" else float(value) for key, value in match.groupdict().items()}


def collect(folder):
    environment = pairs(folder / "environment")
    names = [key[len("layers_") :] for key in environment if key.startswith("layers_")]
    models = []
    for name in names:
        config = json.loads(pathlib.Path(f"configs/models/{name}.json").read_text())
        models.append(
            {
                "name": name,
                "layers": int(environment[f"layers_{name}"]),
                "layers_of_model": config["num_hidden_layers"],
                "forward": read_forward(folder / f"forward-{name}"),
                "peer_wanted": (folder / f"peer-{name}").exists(),
                "peer": json_lines(folder / f"peer-{name}"),
            }
        )
    return {
        "environment": environment,
        "commands": pairs(folder / "commands"),
        "limits": json_lines(folder / "limits"),
        "dense_again": json_lines(folder / "dense-again"),
        "models": models,
    }


def first(objects, **wanted):
    return next((o for o in objects if all(o.get(k) == v for k, v in wanted.items())), None)


def best_peer(model, hooks):
    passes = [p for p in model["peer"] if p["kind"] == "pass" and p["hooks"] == hooks]
    return min(passes, key=lambda p: p["median_s"], default=None)


def model_row(model, dense):
    ours = model["forward"]
    layers = f"{model['layers']} of {model['layers_of_model']}"
    if model["layers"] == model["layers_of_model"]:
        layers = f"all {model['layers']}"
    peer = best_peer(model, hooks=True)
    peer_text = f"{peer['median_s']:.3f}" if peer else "failed" if model["peer_wanted"] else ""
    if not ours:
        return [model["name"], layers, "failed", "", "", "", "", peer_text, ""]
    both = ours["with_statistics_s"]
    return [
        model["name"],
        layers,
        f"{ours['median_s']:.3f}",
        f"{both:.3f}",
        f"{100 * (both / ours['median_s'] - 1):.1f}",
        f"{ours['tflops']:.0f}",
        f"{100 * ours['tflops'] / dense['tflops']:.0f}" if dense else "",
        peer_text,
        f"{peer['median_s'] / both:.2f}" if peer else "",
    ]


def print_table(header, rows):
    print("|", " | ".join(header), "|")
    print("|", " | ".join("---" if i == 0 else "---:" for i in range(len(header))), "|")
    for row in rows:
        print("|", " | ".join(row), "|")
    print()


def print_heading(data):
    environment = data["environment"]
    versions = first(data["limits"], kind="versions") or {}
    peer = next((m["peer"][0] for m in data["models"] if m["peer"] and m["peer"][0]["kind"] == "model"), {})
    print(f"### {environment['device']}, {environment['date'][:10]}\n")
    print(
        f"Driver {environment['driver']}, CUDA {versions.get('cuda_runtime', '?')}, "
        f"cuBLAS {versions.get('cublas', '?')}, torch {peer.get('torch', '(none)')}, "
        f"transformers {peer.get('transformers', '(none)')}; power limit {environment['power_limit_w']} W; "
        f"commit {environment['commit']}. Random weights of the published shapes, all in GPU memory; bf16 "
        "(GPT-OSS experts: MXFP4); medians of 5 passes of 16 x 2048 tokens after a warm-up.\n"
    )


def print_models(data):
    dense = first(data["limits"], kind="product", name=DENSE)
    header = ["model", "layers", "ours, s", "with statistics, s", "statistics, %", "TFLOP/s", "% of dense"]
    rows = [model_row(model, dense) for model in data["models"]]
    print_table([*header, "peer with hooks, s", "peer / ours"], rows)
    rate = f"{dense['tflops']:.0f} TFLOP/s" if dense else "failed"
    again = first(data["dense_again"], kind="product", name=DENSE)
    again = f"{again['tflops']:.0f} after the models" if again else "failed after the models"
    print(
        f"Dense: a bf16 product of 8192 cubed, best of 10: {rate} ({again}). TFLOP/s count the operations of active "
        "experts, in the time without statistics. Ours is the decoder layers; the peer (its fastest setting) also "
        "looks up embeddings and takes the last norm. peer / ours: both with statistics, of the same layers.\n"
    )


def setting_rows(data):
    rows = []
    for model in data["models"]:
        for p in model["peer"]:
            if p["kind"] not in ("pass", "failed"):
                continue
            what = f"{model['name']}, {p['experts']}, batch {p['batch']}, {'hooks' if p['hooks'] else 'no hooks'}"
            if p["kind"] == "failed":
                rows.append([what, "failed", "", ""])
                continue
            peak = f"{p['peak_bytes'] / 2**30:.1f}" if p["peak_bytes"] else ""
            rows.append([what, f"{p['median_s']:.3f}", f"{p['spread_s']:.3f}", peak])
    return rows


def limit_rows(data):
    rows = []
    products = [o for o in data["limits"] if o["kind"] == "product" and o["name"] != DENSE]
    for name in dict.fromkeys(o["name"] for o in products):
        best = max((o for o in products if o["name"] == name), key=lambda o: o["tflops"])
        rows.append([f"{name}, {best['method']}", f"{best['tflops']:.0f} TFLOP/s"])
    for o in data["limits"]:
        if o["kind"] == "copy":
            rows.append([o["name"], f"{o['gb_per_s']:.0f} GB/s"])
        elif o["kind"] == "file":
            rows.append([f"{o['name']}, {o['readers']} readers", f"{o['gb_per_s']:.1f} GB/s"])
    return rows


def print_tables(data):
    print_heading(data)
    print_models(data)
    if rows := setting_rows(data):
        print_table(["peer: setting", "median, s", "spread, s", "peak, GiB"], rows)
    if rows := limit_rows(data):
        print_table(["limit of this machine", "best of 10; files: one pass"], rows)


def main(collect_data, print_data):
    """What a script like this does: the JSON file of what collect_data(folder) returns, its tables, the commands."""
    if len(sys.argv) != 3:
        print(f"usage: {pathlib.Path(sys.argv[0]).name} FOLDER RESULT.json", file=sys.stderr)
        return 2
    data = collect_data(pathlib.Path(sys.argv[1]))
    with open(sys.argv[2], "x", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
    print_data(data)
    print("Command lines:\n")
    for command in [data["environment"]["command_line"], *dict.fromkeys(data["commands"].values())]:
        print("   ", command)
    return 0


if __name__ == "__main__":
    sys.exit(main(collect, print_tables))
