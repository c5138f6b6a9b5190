#!/usr/bin/env python3
"""Train the demo: a small OLMoE on the King James Bible, written in the hub's format.

    train_demo.py text -o text.txt                 the text, from Debian's package bible-kjv (program `bible`)
    train_demo.py train --text text.txt -o demo/   tokenizer, training, checkpoint, held-out tokens, note

The text is public domain (the translation is of 1611). Seven whole books are held out of tokenizer and training; the
demo's 16 x 256 tokens are disjoint windows of them. The checkpoint has the hub's tensor names (one tensor per expert),
in bfloat16. Needs torch, transformers, tokenizers, safetensors, h5py, numpy; a GPU is used if there is one.
"""

import argparse
import datetime
import json
import math
import pathlib
import platform
import re
import subprocess
import sys
import time

HELD_OUT_BOOKS = ("Ruth", "Eccl", "Joel", "Jonah", "Phi", "Jas", "1Jn")
VERSE = re.compile(r"^([1-3]?[A-Za-z]+)(\d+):(\d+) (.+)$")
VERSES = 31102
SEQUENCES = 16
LENGTH = 256
THRESHOLD = 6.0
END_OF_TEXT = "<|endoftext|>"

MODEL = dict(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=48,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    num_experts=16,
    num_experts_per_tok=4,
    norm_topk_prob=False,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    router_aux_loss_coef=0.01,
    initializer_range=0.02,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)


def write_text(path):
    """One verse a line, `Ge1:1 In the beginning ...`, as the program `bible` prints it."""
    try:
        text = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        sys.exit("train_demo: error: no program `bible`: install Debian's package bible-kjv")
    lines = text.splitlines()
    if len(lines) != VERSES or not all(VERSE.match(line) for line in lines):
        sys.exit(f"train_demo: error: expected {VERSES} verses from `bible`, got {len(lines)} lines")
    pathlib.Path(path).write_text(text, encoding="ascii")
    print(f"{path}: {len(lines)} verses, {len(text)} bytes")


def read_books(path):
    """{book: its verses, one a line, without their numbers}, in the order of the text."""
    books = {}
    for line in pathlib.Path(path).read_text(encoding="ascii").splitlines():
        match = VERSE.match(line)
        if not match:
            sys.exit(f"train_demo: error: not a verse ({path}): {line!r}")
        books.setdefault(match[1], []).append(match[4])
    missing = set(HELD_OUT_BOOKS) - set(books)
    if missing:
        sys.exit(f"train_demo: error: no book {sorted(missing)} in {path}")
    return {book: "\n".join(verses) + "\n" for book, verses in books.items()}


def train_tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == MODEL["vocab_size"]
    return tokenizer


def windows(tokenizer, books, np):
    """The demo's sequences [16, 256]: windows spread evenly over the held-out books, disjoint and inside one book."""
    candidates = []
    for book in HELD_OUT_BOOKS:
        ids = tokenizer.encode(books[book]).ids
        candidates += [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
    chosen = [candidates[i * len(candidates) // SEQUENCES] for i in range(SEQUENCES)]
    return np.array(chosen, dtype=np.int32), np.array(candidates, dtype=np.int32)


def dense_experts(module, hidden_states, top_k_index, top_k_weights):
    """All experts on all tokens, the unchosen ones weighted 0: more arithmetic, no gather; fast for tiny experts."""
    import torch

    tokens, experts = hidden_states.shape[0], module.gate_up_proj.shape[0]
    weights = torch.zeros(tokens, experts, dtype=top_k_weights.dtype, device=hidden_states.device)
    weights = weights.scatter(1, top_k_index, top_k_weights)
    stacked = hidden_states.unsqueeze(0).expand(experts, -1, -1)
    gate, up = torch.bmm(stacked, module.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
    inner = module.act_fn(gate) * up * weights.t().unsqueeze(-1)
    return torch.bmm(inner, module.down_proj.transpose(1, 2)).sum(dim=0).to(hidden_states.dtype)


def mean_loss(model, tokens, torch, batch=8):
    """Mean next-token loss in float32 over all sequences of `tokens` [n, length]."""
    total = 0.0
    with torch.no_grad():
        for part in tokens.split(batch):
            logits = model(input_ids=part).logits.float()
            total += torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum"
            ).item()
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def train(model, stream, held_out, args, torch):
    """AdamW, cosine schedule with warm-up, random crops of the text. Returns the mean loss of the last 50 steps."""
    norms = [p for name, p in model.named_parameters() if name.endswith("norm.weight")]
    others = [p for name, p in model.named_parameters() if not name.endswith("norm.weight")]
    groups = [
        {"params": others, "weight_decay": args.weight_decay, "base_lr": args.lr},
        {"params": norms, "weight_decay": 0.0, "base_lr": args.lr * args.norm_lr_factor},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), eps=1e-8)
    generator = torch.Generator(device="cpu").manual_seed(args.seed)
    crop = torch.arange(LENGTH, device=stream.device)
    warmup = max(1, min(200, args.steps // 10))
    losses, start = [], time.monotonic()
    for step in range(args.steps):
        scale = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / args.steps)) * 0.98 + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        offsets = torch.randint(0, stream.numel() - LENGTH, (args.batch,), generator=generator).to(stream.device)
        batch = stream[offsets[:, None] + crop]
        output = model(input_ids=batch, labels=batch, output_router_logits=True, use_cache=False)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append((output.loss - args.aux * output.aux_loss).detach())
        if (step + 1) % args.report == 0 or step + 1 == args.steps:
            recent = torch.stack(losses[-args.report :]).mean().item()
            rate = (step + 1) * args.batch * LENGTH / (time.monotonic() - start)
            held = mean_loss(model, held_out, torch)
            print(f"step {step + 1}: train {recent:.4f} held-out {held:.4f} {rate:.0f} tokens/s", flush=True)
    return torch.stack(losses[-50:]).mean().item()


def hub_tensors(model, torch):
    """The state dict in bfloat16 under the hub's names: the fused expert tensors are split into one per expert."""
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().to("cpu", torch.bfloat16)
        if name.endswith(".mlp.experts.gate_up_proj"):
            for expert, fused in enumerate(value):
                gate, up = fused.chunk(2, dim=0)
                prefix = f"{name.removesuffix('.gate_up_proj')}.{expert}"
                tensors[f"{prefix}.gate_proj.weight"] = gate.contiguous()
                tensors[f"{prefix}.up_proj.weight"] = up.contiguous()
        elif name.endswith(".mlp.experts.down_proj"):
            for expert, down in enumerate(value):
                tensors[f"{name.removesuffix('.down_proj')}.{expert}.down_proj.weight"] = down.contiguous()
        else:
            tensors[name] = value.contiguous()
    return tensors


def write_tokens(path, tokens, date):
    import h5py

    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("tokens", data=tokens)
        dataset.attrs["tokenizer"] = "tokenizer.json (byte-level BPE, 1024 tokens)"
        dataset.attrs["dataset"] = "King James Bible (Debian package bible-kjv-text)"
        dataset.attrs["split"] = "held-out books: " + ", ".join(HELD_OUT_BOOKS)
        dataset.attrs["created"] = date


def unigram_loss(train_ids, tokens, np):
    """Mean loss of a unigram model of the training text (add-one smoothed) on the predicted tokens of the demo."""
    counts = np.bincount(train_ids, minlength=MODEL["vocab_size"]) + 1.0
    return float(-np.log(counts / counts.sum())[tokens[:, 1:]].mean())


def site_outputs(model, tokens, torch):
    """{(layer, site): norm output [N, S, H]} of one forward pass."""
    sites, hooks = {}, []
    for layer, block in enumerate(model.model.layers):
        for site, module in (("ln_attn", block.input_layernorm), ("ln_mlp", block.post_attention_layernorm)):
            hooks.append(
                module.register_forward_hook(
                    lambda _module, _inputs, output, key=(layer, site): sites.__setitem__(
                        key, output.detach().cpu().numpy()
                    )
                )
            )
    with torch.no_grad():
        model(input_ids=tokens)
    for hook in hooks:
        hook.remove()
    return sites


def print_outliers(sites, np):
    """Values of magnitude >= 6 at each site, and the features that qualify: in one sequence, and in all together."""
    hits = {key: np.abs(values) >= THRESHOLD for key, values in sites.items()}
    for (layer, site), values in sites.items():
        hit = hits[layer, site]
        features = np.flatnonzero(hit.any(axis=(0, 1)))
        print(
            f"layer {layer} {site}: {hit.sum()} outlier values, {features.size} features, "
            f"max {np.abs(values).max():.2f}"
        )
    stacked = np.stack(list(hits.values()))
    layers = stacked.any(axis=2).mean(axis=0)
    positions = stacked.any(axis=0).mean(axis=1)
    rows = np.argwhere((layers >= 0.25) & (positions >= 0.06))
    print(
        f"per sequence: {len(rows)} qualified rows, {np.unique(rows[:, 1]).size if len(rows) else 0} distinct features"
    )
    layers = stacked.any(axis=(1, 2)).mean(axis=0)
    positions = stacked.any(axis=0).mean(axis=(0, 1))
    for feature in np.flatnonzero((layers >= 0.25) & (positions >= 0.06)):
        print(f"pooled: feature {feature} sites {layers[feature]:.3f} positions {positions[feature]:.3f}")


NOTE = """# The demo checkpoint

A small OLMoE made by `scripts/train_demo.py`; how and why: docs/demo.md.

| what | value |
|---|---|
| text | King James Bible (1611, public domain), from Debian's package bible-kjv-text |
| held out | {books} (whole books; tokens.h5 has {n} disjoint windows of {length} tokens) |
| tokenizer | byte-level BPE, {vocab} tokens, trained on the training books (tokenizer.json) |
| model | {layers} layers, hidden {hidden}, {experts} experts, top-{k}; {parameters:,} parameters, bfloat16 |
| training | {steps} steps of {batch} x {length} tokens ({epochs:.1f} passes over {train_tokens:,}), seed {seed} |
| optimizer | AdamW, lr {lr} (norm weights {norm_lr}), cosine, weight decay {decay} (norms 0), router loss {aux} |
| device | {device}; torch {torch}, transformers {transformers} |
| final training loss | {train_loss:.4f} (mean of the last 50 steps) |
| held-out loss | {held_loss:.4f} ({held_tokens:,} tokens) |
| loss on tokens.h5 | {demo_loss:.4f}, perplexity {demo_ppl:.2f} (saved checkpoint, float32 arithmetic) |
| unigram perplexity on tokens.h5 | {unigram_ppl:.2f} (unigram model of the training text) |
| date | {date} |
"""


def run_training(args):
    import numpy as np
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import OlmoeConfig, OlmoeForCausalLM
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device_name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    books = read_books(args.text)
    training_text = [text for book, text in books.items() if book not in HELD_OUT_BOOKS]
    tokenizer = train_tokenizer(training_text)
    train_ids = np.array(tokenizer.encode("".join(training_text)).ids, dtype=np.int32)
    tokens, held_out = windows(tokenizer, books, np)
    print(f"{train_ids.size} training tokens, {held_out.size} held-out tokens, device {device_name}")

    ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
    config = OlmoeConfig(**MODEL | {"router_aux_loss_coef": args.aux})
    config._attn_implementation = "sdpa"
    config._experts_implementation = args.experts or ("dense" if device == "cuda" else "eager")
    model = OlmoeForCausalLM(config).to(device)
    stream = torch.from_numpy(train_ids).long().to(device)
    held = torch.from_numpy(held_out).long().to(device)
    train_loss = train(model, stream, held, args, torch)

    save_file(hub_tensors(model, torch), out / "model.safetensors", metadata={"format": "pt"})
    saved = config.to_dict()
    saved |= {
        "architectures": ["OlmoeForCausalLM"],
        "dtype": "bfloat16",
        "transformers_version": transformers.__version__,
    }
    (out / "config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "model.safetensors").chmod(0o644)
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    write_tokens(out / "tokens.h5", tokens, date)

    torch.backends.cuda.matmul.allow_tf32 = False
    final = OlmoeForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).to(device)
    demo = torch.from_numpy(tokens).long().to(device)
    demo_loss, held_loss = mean_loss(final, demo, torch), mean_loss(final, held, torch)
    print_outliers(site_outputs(final, demo, torch), np)
    note = NOTE.format(
        books=", ".join(HELD_OUT_BOOKS),
        n=SEQUENCES,
        length=LENGTH,
        vocab=MODEL["vocab_size"],
        layers=MODEL["num_hidden_layers"],
        hidden=MODEL["hidden_size"],
        experts=MODEL["num_experts"],
        k=MODEL["num_experts_per_tok"],
        parameters=sum(p.numel() for p in model.parameters()),
        steps=args.steps,
        batch=args.batch,
        epochs=args.steps * args.batch * LENGTH / train_ids.size,
        train_tokens=train_ids.size,
        seed=args.seed,
        lr=args.lr,
        norm_lr=args.lr * args.norm_lr_factor,
        aux=args.aux,
        decay=args.weight_decay,
        device=device_name,
        torch=torch.__version__,
        transformers=transformers.__version__,
        train_loss=train_loss,
        held_loss=held_loss,
        held_tokens=held_out.size,
        demo_loss=demo_loss,
        demo_ppl=math.exp(demo_loss),
        unigram_ppl=math.exp(unigram_loss(train_ids, tokens, np)),
        date=date,
    )
    (out / "README.md").write_text(note)
    print(note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    text = commands.add_parser("text", help="write the text (needs the program `bible`)")
    text.add_argument("-o", "--out", required=True)
    training = commands.add_parser("train", help="train and write the demo")
    training.add_argument("--text", required=True)
    training.add_argument("-o", "--out", required=True, help="folder of the demo")
    training.add_argument("--steps", type=int, default=1500)
    training.add_argument("--batch", type=int, default=64, help="sequences of 256 tokens a step")
    training.add_argument("--lr", type=float, default=3e-3)
    training.add_argument(
        "--norm-lr-factor", type=float, default=20.0, help="learning rate of norm weights over --lr"
    )
    training.add_argument("--weight-decay", type=float, default=1.0, help="of everything but norm weights")
    training.add_argument("--aux", type=float, default=0.01, help="weight of the router's load-balancing loss")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", choices=("cpu", "cuda"))
    training.add_argument("--experts", choices=("eager", "dense", "grouped_mm", "batched_mm"))
    training.add_argument("--report", type=int, default=50, help="steps between progress lines")
    args = parser.parse_args()
    if args.command == "text":
        write_text(args.out)
    else:
        run_training(args)


if __name__ == "__main__":
    main()
