#!/usr/bin/env python3
"""Make tests/references/NAME/ablation.h5: what Hugging Face transformers computes with features zeroed at every site.

    make_ablation_references.py [-o tests/references] [NAME...]      of the folders that make_references.py made

    ablation            a row per variant, columns as in the result file's /ablation
    ablation_features   (variant, draw, feature), likewise
    growth              [layers, experts + 1, features] what each expert, the shared one last, adds to the squares of the
                        features in the residual stream, over all tokens; for models with experts

Hooks on both layer norms of each layer zero the features of their outputs, in a float32 run with attention "eager". The
features are those that qualify in reference.h5, and draws of as many others by the program's rule (docs/methods.md). What
an expert adds is what transformers' own experts give where all routing weights but its own are 0.
"""

import json
import pathlib
import tempfile

import h5py
import numpy as np
import torch
import transformers

from make_references import SITES, THRESHOLD, arguments, from_mxfp4, load, make_tensors, save_checkpoint
from reference_models import REFERENCES

NAMES = ("gpt_oss_a", "gpt_oss_b", "qwen3_next_a", "glm4_moe_a", "mixtral_a", "olmoe_a", "llama_a")
NAMES += ("qwen3_moe_one_token",)
SEED, DRAWS = 0, 3
VARIANTS = {"INTACT": 0, "FEATURES": 1, "RANDOM": 2}
ROW = np.dtype(
    [("variant", "<i4"), ("draw", "<i4"), ("n_features", "<i8"), ("perplexity", "<f8"), ("nll_mean", "<f8")]
    + [("top1_attention", "<f8"), ("top1_token", "<f8")]
)
FEATURE = np.dtype([("variant", "<i4"), ("draw", "<i4"), ("feature", "<i4")])
BITS = 2**64 - 1


def mix(z):
    """splitmix64 of a number."""
    z = (z + 0x9E3779B97F4A7C15) & BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
    return z ^ (z >> 31)


def draw_others(outliers, hidden, draw):
    """As many features as there are outliers, none of them an outlier."""
    others = [h for h in range(hidden) if h not in outliers]
    key = mix((mix(SEED ^ int.from_bytes(b"ablate", "big")) + draw) & BITS)
    n = min(len(outliers), len(others))
    for i in range(n):
        j = i + ((mix((key + i) & BITS) >> 32) * (len(others) - i) >> 32)
        others[i], others[j] = others[j], others[i]
    return sorted(others[:n])


def qualified(folder, layers):
    """Features that hit at least 25 % of the sites and 6 % of the positions."""
    with h5py.File(folder / "reference.h5") as file:
        sites = np.stack([file[f"fp32/layers/{layer:03d}/{site}"][:] for layer in range(layers) for site in SITES])
    hits = np.abs(sites) >= THRESHOLD
    by_site, by_position = hits.any(axis=(1, 2)).mean(axis=0), hits.any(axis=0).mean(axis=(0, 1))
    return [int(h) for h in np.flatnonzero((by_site >= 0.25) & (by_position >= 0.06))]


def measure(model, tokens, features):
    """(mean loss, mean largest attention probability, mean probability of the likeliest next token)."""

    def zero(_module, _inputs, output):
        output = output.clone()
        output[..., features] = 0
        return output

    hooks = [
        norm.register_forward_hook(zero)
        for block in model.model.layers
        for norm in (block.input_layernorm, block.post_attention_layernorm)
    ]
    ids = torch.from_numpy(tokens).long()
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=False, output_attentions=True)
    for hook in hooks:
        hook.remove()
    attention = [layer.double().amax(dim=-1).mean().item() for layer in output.attentions if layer is not None]
    logits = output.logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
    top = logits.softmax(dim=-1).double().amax(dim=-1)
    if losses.numel() == 0:  # sequences of one token
        return float("nan"), np.mean(attention), float("nan")
    return losses.mean().item(), np.mean(attention), top.mean().item()


def growth(model, tokens, features):
    """[L, E+1, F], None for a model without experts."""
    blocks = [next((m for m in block.children() if hasattr(m, "experts")), None) for block in model.model.layers]
    if not any(blocks):
        return None
    seen = [{} for _ in blocks]
    hooks = []
    for block, mixture, inside in zip(model.model.layers, blocks, seen, strict=True):
        if mixture is None:
            continue

        def before(_module, inputs, inside=inside):
            inside["before"] = inputs[0]

        def experts(_module, inputs, output, inside=inside):
            inside["inputs"], inside["routed"] = inputs, output

        def whole(_module, _inputs, output, inside=inside):
            inside["added"] = output[0] if isinstance(output, tuple) else output

        hooks.append(block.post_attention_layernorm.register_forward_pre_hook(before))
        hooks.append(mixture.experts.register_forward_hook(experts))
        hooks.append(mixture.register_forward_hook(whole))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(tokens).long(), use_cache=False)
        for hook in hooks:
            hook.remove()
        n_experts = max(mixture.experts.num_experts for mixture in blocks if mixture is not None)
        total = np.zeros((len(blocks), n_experts + 1, len(features)))
        for layer, (mixture, inside) in enumerate(zip(blocks, seen, strict=True)):
            if mixture is None:
                continue
            flat = inside["before"].reshape(-1, inside["before"].shape[-1])[:, features].double()
            added = inside["added"].reshape(-1, inside["added"].shape[-1])[:, features]
            twice = flat + (flat.float() + added).double()  # before and after
            rows, chosen, weights = inside["inputs"]
            for expert in range(n_experts):
                part = mixture.experts(rows, chosen, weights * (chosen == expert))
                part = part.reshape(-1, part.shape[-1])[:, features].double()
                total[layer, expert] = (part * twice).sum(dim=0).numpy()
            routed = inside["routed"].reshape(-1, inside["routed"].shape[-1])[:, features]
            if hasattr(mixture, "shared_expert") or hasattr(mixture, "shared_experts"):
                total[layer, n_experts] = ((added.double() - routed.double()) * twice).sum(dim=0).numpy()
    return total


def make(reference, out):
    folder = out / reference.name
    with h5py.File(folder / "tokens.h5") as file:
        tokens = file["tokens"][:]
    unused = f"model.layers.{reference.config['num_hidden_layers']}." if reference.mtp else None
    with tempfile.TemporaryDirectory() as plain:
        source = folder
        if reference.mxfp4:  # transformers needs a GPU to compute with MXFP4: give it the matrices that it decodes to
            source = pathlib.Path(plain)
            save_checkpoint(source, from_mxfp4(make_tensors(reference)), 1)
            (source / "config.json").write_text(json.dumps(reference.config))
        model = load(source, torch.float32, "eager", unused)
    outliers = qualified(folder, reference.config["num_hidden_layers"])
    hidden = reference.config["hidden_size"]
    variants = [("INTACT", -1, []), ("FEATURES", -1, outliers)]
    variants += [("RANDOM", draw, draw_others(outliers, hidden, draw)) for draw in range(DRAWS)]
    rows, features = [], []
    for name, draw, zeroed in variants:
        loss, attention, top = measure(model, tokens, zeroed)
        rows.append((VARIANTS[name], draw, len(zeroed), np.exp(loss), loss, attention, top))
        features += [(VARIANTS[name], draw, feature) for feature in zeroed]
    with h5py.File(folder / "ablation.h5", "w") as file:
        file.attrs.update({"transformers": str(transformers.__version__), "torch": str(torch.__version__)})
        file["ablation"] = np.array(rows, ROW)
        file["ablation_features"] = np.array(features, FEATURE)
        if (grown := growth(model, tokens, outliers)) is not None:
            file["growth"] = grown
    (folder / "ablation.h5").chmod(0o644)
    print(f"{reference.name}: {rows}", flush=True)


def main():
    args = arguments(__doc__, NAMES)
    for reference in REFERENCES:
        if reference.name in args.names:
            make(reference, args.out)


if __name__ == "__main__":
    main()
