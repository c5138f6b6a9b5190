#!/usr/bin/env python3
"""Make tests/references: small random checkpoints and what Hugging Face transformers computes on them.

    make_references.py [-o tests/references] [NAME...]      all of them, or those named

Each folder is a checkpoint as the hub publishes it (config.json, *.safetensors under the hub's tensor names, one tensor
per expert), tokens.h5, and reference.h5:

    fp32/layers/000/ln_attn, ln_mlp   float32 [N, S, H]  norm outputs of a float32 run (attention and experts "eager")
    fp32/nll                          float32 [N, S-1]   next-token losses from float32 logits
    fp32/expert_tokens                uint64 [L, E]      tokens sent to each expert (zero rows: dense layers)
    bf16/eager/relative_error         float64 [L, 2]     |bf16 - fp32| / |fp32| (Frobenius) of its own bfloat16 run
    bf16/eager/nll_difference         float64            mean |bf16 - fp32| of the losses
    bf16/sdpa/...                     likewise with scaled_dot_product_attention, where the model has it

The weights are drawn so that residual stream, attention and routing stay alive, with large norm weights planted in a
few features: some at every site, some at a few, one at a single site, some negative, some only just large enough. Every
token id has one of seven classes, kept in features of the residual stream that no layer disturbs much; the routers read
mostly these, so that the scores of chosen and other experts are well apart and bfloat16 rounding moves no token to
another expert (one moved token is worth more than all rounding, and would make the error of a bfloat16 run a matter of
luck). A tensor depends on the seed and its own name alone. Made with torch 2.11.0 and transformers 5.17.0 on a CPU;
the versions are attributes of reference.h5. `mxfp4.h5` (made with the gpt_oss references) holds all 16 MXFP4 codes
under all 256 scales, and their values as transformers decodes them.
"""

import argparse
import json
import pathlib
import shutil
import tempfile

import h5py
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from reference_models import REFERENCES
from reference_weights import draw

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SITES = ("ln_attn", "ln_mlp")
THRESHOLD = 6.0


# --- MXFP4 ---

CODES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=np.float32)


def quantize(matrix):
    """float32 [..., in] -> blocks uint8 [..., in/32, 16] and scales uint8 [..., in/32], to the nearest codes."""
    blocks = matrix.reshape(*matrix.shape[:-1], -1, 32)
    largest = np.maximum(np.abs(blocks).max(axis=-1), 2.0**-100)
    exponent = np.floor(np.log2(largest)).astype(np.int32) - 2
    scaled = blocks / np.exp2(exponent)[..., None]
    codes = np.abs(np.abs(scaled)[..., None] - CODES).argmin(axis=-1).astype(np.uint8)
    codes |= (scaled < 0).astype(np.uint8) << 3
    return np.ascontiguousarray(codes[..., 0::2] | codes[..., 1::2] << 4), np.ascontiguousarray(
        exponent + 127, dtype=np.uint8
    )


def to_mxfp4(tensors):
    """Replace the experts' matrices [E, in, out] by blocks [E, out, in/32, 16] and scales [E, out, in/32]."""
    packed = {}
    for name, values in tensors.items():
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            blocks, scales = quantize(values.float().numpy().transpose(0, 2, 1))
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = torch.from_numpy(blocks), torch.from_numpy(scales)
        else:
            packed[name] = values
    return packed


def from_mxfp4(tensors):
    """What transformers makes of blocks and scales: plain bfloat16 matrices [E, in, out]."""
    plain = {name: values for name, values in tensors.items() if not name.endswith(("_blocks", "_scales"))}
    for name, blocks in tensors.items():
        if name.endswith("_blocks"):
            name = name.removesuffix("_blocks")
            plain[name] = convert_moe_packed_tensors(
                blocks, tensors[f"{name}_scales"], dtype=torch.bfloat16
            ).contiguous()
    return plain


def save_mxfp4_codes(out):
    """All codes under all scales: blocks [256, 16] (each code in both nibbles), scales [256], values [256, 32]."""
    codes = np.arange(16, dtype=np.uint8)
    blocks = np.tile(codes | codes[::-1] << 4, (256, 1))
    scales = np.arange(256, dtype=np.uint8)
    with h5py.File(out / "mxfp4.h5", "w") as file:
        file.attrs["transformers"] = str(transformers.__version__)
        file["blocks"], file["scales"] = blocks, scales
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            values = convert_moe_packed_tensors(
                torch.from_numpy(blocks).reshape(1, 256, 1, 16),
                torch.from_numpy(scales).reshape(1, 256, 1),
                dtype=dtype,
            )
            file[name] = values[0].T.float().contiguous().numpy()


def make_tensors(reference):
    """{hub name: torch tensor in the stored type}."""
    stored = {name: torch.from_numpy(values) for name, values in draw(reference).items()}
    for name, values in stored.items():
        if not name.endswith(".e_score_correction_bias"):  # float32 in the hub's files too
            stored[name] = values.to(DTYPES[reference.dtype])
    return to_mxfp4(stored) if reference.mxfp4 else stored


# --- files ---


def save_checkpoint(folder, tensors, shards):
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    per_shard = -(-len(names) // shards)
    index = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * per_shard : (shard + 1) * per_shard]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n")


def save_config(folder, reference):
    keys = reference.config | {"torch_dtype": reference.dtype}
    if reference.mxfp4:
        keys["quantization_config"] = {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        }
        del keys["torch_dtype"]  # as on the hub
    if reference.style == "old":
        text = json.dumps(keys, indent=2, sort_keys=True) + "\n"
    else:
        config = AutoConfig.for_model(**keys)
        config.dtype = DTYPES[reference.dtype]
        text = config.to_json_string()
    (folder / "config.json").write_text(text)


def save_tokens(folder, reference):
    random = np.random.default_rng([reference.seed, 2])
    tokens = random.integers(
        0, reference.config["vocab_size"], (reference.sequences, reference.length), dtype=np.int32
    )
    with h5py.File(folder / "tokens.h5", "w") as file:
        dataset = file.create_dataset("tokens", data=tokens)
        dataset.attrs["dataset"] = "uniform random ids"
    return tokens


# --- runs ---


def run(model, tokens):
    """One forward pass: {(layer, site): float32 [N, S, H]}, losses [N, S-1], chosen experts {layer: [N*S, k]}."""
    sites, experts = {}, {}

    def keep_site(key):
        return lambda _module, _inputs, output: sites.__setitem__(key, output.float().numpy().copy())

    def keep_experts(layer):
        def hook(_module, inputs):
            experts[layer] = inputs[1].numpy().copy()

        return hook

    for layer, block in enumerate(model.model.layers):
        block.input_layernorm.register_forward_hook(keep_site((layer, 0)))
        block.post_attention_layernorm.register_forward_hook(keep_site((layer, 1)))
        if hasattr(block.mlp, "experts"):
            block.mlp.experts.register_forward_pre_hook(keep_experts(layer))
    ids = torch.from_numpy(tokens).long()
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.float()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return sites, losses.numpy(), experts


def load(folder, dtype, attention, unused):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, experts_implementation="eager", output_loading_info=True
    )
    unexpected = [name for name in info["unexpected_keys"] if not (unused and name.startswith(unused))]
    assert not (info["missing_keys"] or info["mismatched_keys"] or unexpected), (folder, info)
    model.eval()
    return model


def relative_error(values, expected):
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(values - expected) / np.linalg.norm(expected)


def save_reference(folder, reference, exact, rounded):
    sites, losses, experts = exact
    layers = reference.config["num_hidden_layers"]
    options = dict(compression="gzip", compression_opts=9, shuffle=True)
    with h5py.File(folder / "reference.h5", "w") as file:
        file.attrs.update(
            {
                "transformers": str(transformers.__version__),
                "torch": str(torch.__version__),
                "device": "cpu",
                "seed": reference.seed,
                "twins": np.array(reference.twins, dtype=np.int32),
            }
        )
        for (layer, site), values in sites.items():
            file.create_dataset(f"fp32/layers/{layer:03d}/{SITES[site]}", data=values, **options)
        file["fp32/nll"] = losses
        if experts:
            counts = np.zeros((layers, n_experts(reference.config)), dtype=np.uint64)
            for layer, chosen in experts.items():
                counts[layer] = np.bincount(chosen.flatten(), minlength=counts.shape[1])
            file["fp32/expert_tokens"] = counts
        for attention, (bf16_sites, bf16_losses, _) in rounded.items():
            errors = [
                [relative_error(bf16_sites[layer, site], sites[layer, site]) for site in (0, 1)]
                for layer in range(layers)
            ]
            file[f"bf16/{attention}/relative_error"] = np.array(errors)
            file[f"bf16/{attention}/nll_difference"] = np.abs(bf16_losses - losses).mean() if losses.size else 0.0


def n_experts(config):
    return next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config)


def moved_tokens(reference, chosen, expected):
    """How many (token, layer) have another set of experts in `chosen` than in `expected`; twins count as one."""

    def sets(indices):
        return np.sort(
            np.where(indices == reference.twins[1], reference.twins[0], indices) if reference.twins else indices
        )

    return sum(int((sets(chosen[layer]) != sets(expected[layer])).any(axis=1).sum()) for layer in expected)


def summarise(reference, exact, rounded):
    sites, losses, experts = exact
    hits = np.stack([np.abs(values) >= THRESHOLD for values in sites.values()])
    by_layer = hits.any(axis=(1, 2)).mean(axis=0)
    by_position = hits.any(axis=0).mean(axis=(0, 1))
    qualified = (by_layer >= 0.25) & (by_position >= 0.06)
    largest = max(np.abs(values).max() for values in sites.values())
    moved = {attention: moved_tokens(reference, chosen, experts) for attention, (_, _, chosen) in rounded.items()}
    assert not any(moved.values()), (
        f"{reference.name}: rounding moves tokens to other experts {moved}: take another seed"
    )
    errors = {
        attention: max(relative_error(values[key], sites[key]) for key in sites)
        for attention, (values, _, _) in rounded.items()
    }
    print(
        f"{reference.name}: outlier features {by_layer.astype(bool).sum()}, qualified {qualified.sum()}, "
        f"largest {largest:.1f}, loss {losses.mean() if losses.size else float('nan'):.3f} "
        f"(uniform {np.log(reference.config['vocab_size']):.3f}), "
        f"bf16 error {', '.join(f'{k} {v:.4f}' for k, v in errors.items())}",
        flush=True,
    )


def make(reference, out):
    """The folder of a reference; returns what `run` gave in float32, and of each attention in bfloat16."""
    folder = out / reference.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = make_tensors(reference)
    save_checkpoint(folder, tensors, reference.shards)
    save_config(folder, reference)
    tokens = save_tokens(folder, reference)
    unused = (
        f"model.layers.{reference.config['num_hidden_layers']}." if reference.mtp else None
    )  # transformers drops mtp.*
    attentions = ("eager",) if reference.config["model_type"] == "gpt_oss" else ("eager", "sdpa")
    with tempfile.TemporaryDirectory() as plain:
        source = folder
        if reference.mxfp4:  # transformers needs a GPU to compute with MXFP4: give it the matrices that it decodes to
            source = pathlib.Path(plain)
            save_checkpoint(source, from_mxfp4(tensors), 1)
            (source / "config.json").write_text(json.dumps(reference.config))
        exact = run(load(source, torch.float32, "eager", unused), tokens)
        rounded = {
            attention: run(load(source, torch.bfloat16, attention, unused), tokens) for attention in attentions
        }
    save_reference(folder, reference, exact, rounded)
    for path in folder.iterdir():
        path.chmod(0o644)
    return exact, rounded


def set_up():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def arguments(description, names):
    """Folder and names of the command line, or else `names`; torch and transformers are set up."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "tests/references"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", default=names)
    args = parser.parse_args()
    unknown = set(args.names) - {reference.name for reference in REFERENCES}
    if unknown:
        parser.error(f"no reference {sorted(unknown)}")
    set_up()
    return args


def main():
    args = arguments(__doc__, [reference.name for reference in REFERENCES])
    if any(name.startswith("gpt_oss") for name in args.names):
        args.out.mkdir(parents=True, exist_ok=True)
        save_mxfp4_codes(args.out)
    for reference in REFERENCES:
        if reference.name in args.names:
            summarise(reference, *make(reference, args.out))


if __name__ == "__main__":
    main()
