#!/usr/bin/env python3
"""The peer: Hugging Face transformers with forward hooks, random weights of a model's shapes, all on one device.

    peer_transformers.py CONFIG.json [--layers L] [--sequences N] [--length S] [--batch B...] [--repeats R]
                         [--device cuda|cpu] [--reference]
    peer_transformers.py FOLDER [--sequences N] [--length S] [--batch B...] [--device cuda|cpu]

Hooks on both norms of every layer count, on the device, what the main program counts there: outlier features of each
token, the largest magnitude and the features with any outlier in a sequence. Measured at the best settings known
(grouped_mm experts, batches 16 and 4); --reference adds eager experts at batch 1 (two passes), as a plain script would
run. Prints one JSON object a line: first the versions and the model, then each setting with the median, spread and all
times of its passes over all sequences, after a warm-up pass; the fastest setting also without hooks.

With the FOLDER of a checkpoint: the time to load it onto the device (the library's own default, four threads copying from
the mapped files) and of the first pass with hooks, of the first batch size that fits; libraries are imported and the
device is started before the clock.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

THRESHOLD = 6.0


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=pathlib.Path, metavar="CONFIG.json|FOLDER")
    parser.add_argument("--layers", type=int, help="the first L layers only")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 4], help="sequences of one forward call")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--reference", action="store_true", help="also eager experts at batch 1")
    return parser.parse_args()


def emit(kind, **values):
    print(json.dumps({"kind": kind, **values}), flush=True)


def build_model(path, layers, device):
    """The model of a config.json with random bf16 weights, without the file's quantization."""
    values = json.loads(path.read_text())
    values.pop("quantization_config", None)
    layers = min(layers or values["num_hidden_layers"], values["num_hidden_layers"])
    values["num_hidden_layers"] = layers
    if values.get("layer_types"):
        values["layer_types"] = values["layer_types"][:layers]
    config = AutoConfig.for_model(**values)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()


def load_model(folder, device):
    """The model of a checkpoint, straight onto the device."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=device)
    model.eval().set_experts_implementation("grouped_mm")
    return model


class Observer:
    """Forward hooks on the norms; what they compute stays on the device."""

    def __init__(self, model):
        self.results = []
        norms = [n for layer in model.model.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
        self.handles = [norm.register_forward_hook(self.observe) for norm in norms]

    def observe(self, _module, _inputs, output):
        magnitude = output.abs()
        mask = magnitude >= THRESHOLD
        self.results.append((mask.sum(dim=1), magnitude.amax(dim=1), mask.any(dim=0)))

    def remove(self):
        for handle in self.handles:
            handle.remove()


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def one_pass(model, tokens, batch, observer, device):
    """Seconds of one pass of all sequences."""
    if observer:
        observer.results.clear()
    synchronize(device)
    begin = time.perf_counter()
    for first in range(0, len(tokens), batch):
        output = model.model(tokens[first : first + batch], use_cache=False).last_hidden_state
    synchronize(device)
    seconds = time.perf_counter() - begin
    if not torch.isfinite(output).all():
        raise ArithmeticError("the last hidden state is not finite")
    return seconds


def measure(model, tokens, experts, batch, hooks, device, repeats):
    """Emit one setting; its median time, or None if it cannot run."""
    setting = {"experts": experts, "batch": batch, "hooks": hooks}
    observer = None
    try:
        model.set_experts_implementation(experts)
        observer = Observer(model) if hooks else None
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        one_pass(model, tokens, batch, observer, device)  # warm-up
        seconds = [one_pass(model, tokens, batch, observer, device) for _ in range(repeats)]
    except (RuntimeError, ValueError, ArithmeticError) as error:  # RuntimeError: also memory that does not suffice
        emit("failed", **setting, error=str(error)[:300])
        return None
    finally:
        if observer:
            observer.remove()
    median = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    emit("pass", **setting, median_s=median, spread_s=max(seconds) - min(seconds), seconds=seconds, peak_bytes=peak)
    return median


def emit_model(model, arguments, seconds):
    emit(
        "model",
        model_type=model.config.model_type,
        layers=model.config.num_hidden_layers,
        parameters=sum(p.numel() for p in model.parameters()),
        attention=model.config._attn_implementation,
        sequences=arguments.sequences,
        length=arguments.length,
        init_s=seconds,
        torch=torch.__version__,
        transformers=transformers.__version__,
        torch_cuda=torch.version.cuda,
    )


def make_tokens(model, arguments):
    shape = (arguments.sequences, arguments.length)
    return torch.randint(0, model.config.vocab_size, shape, device=arguments.device)


def measure_checkpoint(arguments):
    """Load and first pass. True if both succeeded."""
    torch.zeros(1, device=arguments.device)
    synchronize(arguments.device)
    begin = time.perf_counter()
    model = load_model(arguments.config, arguments.device)
    synchronize(arguments.device)
    load = time.perf_counter() - begin
    emit_model(model, arguments, load)
    tokens = make_tokens(model, arguments)
    for batch in arguments.batch:
        observer = Observer(model)
        try:
            first = one_pass(model, tokens, batch, observer, arguments.device)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            emit("failed", experts="grouped_mm", batch=batch, hooks=True, error=str(error)[:300])
            continue
        finally:
            observer.remove()
        peak = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else None
        emit("checkpoint", batch=batch, load_s=load, first_pass_s=first, total_s=load + first, peak_bytes=peak)
        return True
    return False


def main():
    arguments = parse_arguments()
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    if arguments.config.is_dir():
        return 0 if measure_checkpoint(arguments) else 1
    begin = time.perf_counter()
    model = build_model(arguments.config, arguments.layers, arguments.device)
    synchronize(arguments.device)
    emit_model(model, arguments, time.perf_counter() - begin)
    tokens = make_tokens(model, arguments)
    medians = {}
    for batch in arguments.batch:
        medians[batch] = measure(model, tokens, "grouped_mm", batch, True, arguments.device, arguments.repeats)
    ran = [batch for batch in arguments.batch if medians[batch] is not None]
    if ran:
        fastest = min(ran, key=medians.get)
        measure(model, tokens, "grouped_mm", fastest, False, arguments.device, arguments.repeats)
    if arguments.reference:
        measure(model, tokens, "eager", 1, True, arguments.device, min(arguments.repeats, 2))
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
