#!/usr/bin/env python3
"""Compare the program with Hugging Face transformers on random small models of every architecture (random_models.py).

    compare_random_models.py [--first SEED] [--count N] [--device cpu|cuda|both] [--jobs J] [--keep FOLDER] PROGRAM

Of each model PROGRAM runs in float32 and in bf16, on a GPU in bf16 also with the portable kernels. Required, as of the
references in the tests: in float32 every site within a relative error of 2e-4, its largest error within 1e-3 of its
largest value, losses within 1e-4 and the tokens of each expert exactly; in bf16 at most 1.3 times the error of
transformers' own bf16 run, unless rounding moved a token to another expert in either, which is worth more than all
rounding: then at most 1. Prints what failed, and at the end how many held and the worst. Exit status: 0 all held, 1
some did not. Needs what make_references.py needs; --keep keeps the models that failed.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import transformers

from make_references import SITES, make, moved_tokens, relative_error, set_up
from random_models import random_reference

# As in tests/e2e/test_references.py.
SITE_TOLERANCE, ELEMENT_TOLERANCE, LOSS_TOLERANCE = 2e-4, 1e-3, 1e-4
BF16_FACTOR = 1.3
SECONDS = 120  # of a run
CONFIG = """
model: {{ path = "{folder}"; }};
data: {{ tokens = "{folder}/tokens.h5"; sequences = {sequences}; length = {length}; }};
engine: {{ device = "{device}"; precision = "{precision}"; threads = 1; device_memory_gb = {memory}; }};
output: {{ path = "{result}"; activations = "all"; overwrite = true; }};
"""


def make_one(seed, out):
    """The reference, and how many tokens rounding moves to other experts in transformers."""
    set_up()
    transformers.utils.logging.set_verbosity_error()
    reference = random_reference(seed)
    exact, rounded = make(reference, out)
    return reference, sum(moved_tokens(reference, chosen, exact[2]) for _, _, chosen in rounded.values())


def errors(result, reference):
    """Relative error at each site, largest of an element, of the losses; whether each expert got the same tokens."""
    layers = int(result.attrs["n_layers"])
    names = [f"{layer:03d}/{site}" for layer in range(layers) for site in SITES]
    pairs = [(result[f"activations/{name}"][:], reference[f"fp32/layers/{name}"][:]) for name in names]
    sites = [relative_error(values, expected) for values, expected in pairs]
    element = max(np.abs(values - expected).max() / np.abs(expected).max() for values, expected in pairs)
    expected = reference["fp32/nll"][:].astype(np.float64)
    losses = np.abs(result["perplexity/nll"][:] - expected).mean() / np.abs(expected).mean()
    same = "fp32/expert_tokens" not in reference or np.array_equal(
        result["routing/expert_tokens"][:], reference["fp32/expert_tokens"][:]
    )
    return np.array(sites), element, losses, same


def compare(program, folder, reference, moved, case):
    """(held, what is told, the figure that counts) of one run."""
    device, precision, portable = case
    result = folder / f"{device}-{precision}{'-portable' if portable else ''}.h5"
    config = result.with_suffix(".cfg")
    memory = 4.0 if device == "cuda" else 0.0  # several runs share a GPU
    shape = dict(sequences=reference.sequences, length=reference.length)
    engine = dict(device=device, precision=precision, memory=memory)
    config.write_text(CONFIG.format(folder=folder, result=result, **shape, **engine))
    environment = os.environ | {"MO_CUDA_PORTABLE": str(int(portable))}
    command = ["timeout", str(SECONDS), program, "run", config]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return False, f"exit status {done.returncode}: {done.stderr.strip()[-400:]}", None
    with h5py.File(result) as file, h5py.File(folder / "reference.h5") as expected:
        sites, element, losses, same = errors(file, expected)
        own = expected["bf16/eager/relative_error"][:].ravel()
    result.unlink()
    if precision == "fp32":
        held = sites.max() <= SITE_TOLERANCE and element <= ELEMENT_TOLERANCE and losses <= LOSS_TOLERANCE and same
        told = f"sites {sites.max():.1e}, elements {element:.1e}, losses {losses:.1e}, same experts: {same}"
        return held, told, sites.max()
    ratio = (sites / own).max()
    told = f"{ratio:.3f} times transformers' error, which moved {moved} tokens, same experts: {same}"
    if moved or not same:
        return sites.max() < 1, told, None
    return ratio <= BF16_FACTOR, told, ratio


def cases(device):
    """(device, precision, portable kernels)"""
    if device == "both":
        return cases("cpu") + cases("cuda")
    plain = [(device, "fp32", False), (device, "bf16", False)]
    return [*plain, (device, "bf16", True)] if device == "cuda" else plain


def compare_all(args, out, reference, moved):
    """Rows (case, held, told, figure); the model's folder is gone after it."""
    folder, rows = out / reference.name, []
    for case in cases(args.device):
        rows.append((case, *compare(args.program, folder, reference, moved, case)))
    if args.keep and not all(held for _, held, _, _ in rows):
        shutil.copytree(folder, args.keep / reference.name, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return rows


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--count", type=int, default=60, metavar="N")
    parser.add_argument("--device", choices=("cpu", "cuda", "both"), default="cpu")
    parser.add_argument("--jobs", type=int, default=4, metavar="J", help="runs at a time, and models made at a time")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("program", metavar="PROGRAM")
    args = parser.parse_args()
    if not (path := shutil.which(args.program)):
        parser.error(f"no such program ({args.program})")
    args.program = str(pathlib.Path(path).resolve())
    return args


def main():
    args = arguments()
    held = failed = 0
    worst = {"fp32": (0.0, ""), "bf16": (0.0, "")}
    with (
        tempfile.TemporaryDirectory() as work,
        concurrent.futures.ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as makers,
        concurrent.futures.ThreadPoolExecutor(args.jobs) as runners,
    ):
        out = pathlib.Path(work)
        seeds = range(args.first, args.first + args.count)
        runs = {}
        for made in concurrent.futures.as_completed([makers.submit(make_one, seed, out) for seed in seeds]):
            reference, moved = made.result()
            runs[runners.submit(compare_all, args, out, reference, moved)] = reference.name
        for run in concurrent.futures.as_completed(runs):
            for case, fine, told, figure in run.result():
                held, failed = held + fine, failed + (not fine)
                if figure is not None:
                    worst[case[1]] = max(worst[case[1]], (float(figure), f"{runs[run]} {case[0]}"))
                if not fine:
                    print(f"{runs[run]} {case}: {told}", flush=True)
    print(f"{held} runs held, {failed} did not")
    for precision, (figure, where) in worst.items():
        print(f"{precision}: {figure:.3g} at worst ({where})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
