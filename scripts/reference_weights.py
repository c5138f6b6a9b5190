"""The weights of a reference checkpoint: {hub name: float32 array}. See make_references.py for how they are drawn."""

import zlib

import numpy as np

CLASSES = 7  # of token ids, which the routers tell apart


class Weights:
    """Draws the tensors of one checkpoint; every tensor from its own generator, seeded by (seed, name)."""

    def __init__(self, config, seed):
        self.config, self.seed, self.tensors = config, seed, {}
        self.zero_centred = config["model_type"] == "qwen3_next"
        self.plant()

    def normal(self, name, *size):
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())]).standard_normal(size, dtype=np.float32)

    def plant(self):
        """Norm weights of the 2L sites [L, 2, H]: about 0.7, with large ones planted in six features."""
        layers, hidden = self.config["num_hidden_layers"], self.config["hidden_size"]
        random = np.random.default_rng([self.seed, 1])
        scale = 0.7 * np.exp(0.3 * random.standard_normal((layers, 2, hidden)))
        features, self.class_features = np.split(random.permutation(hidden)[: 6 + CLASSES], [6])
        sites = 2 * layers
        flat = scale.reshape(sites, hidden)
        flat[:, features[0]] = random.uniform(8, 40, sites)  # every site
        flat[random.permutation(sites)[: max(2, (2 * sites) // 3)], features[1]] = -random.uniform(
            8, 16
        )  # most sites
        flat[random.permutation(sites)[: max(1, -(-sites // 4))], features[2]] = 9.0  # a quarter of the sites
        flat[random.integers(sites), features[3]] = -40.0  # one site: too few to qualify, if there are more than four
        flat[:, features[4]] = 2.7  # now and then
        flat[:, features[5]] = 2.0  # rarely: too few positions
        self.site_scale, self.features = scale.astype(np.float32), features

    def put(self, name, values):
        self.tensors[name] = np.ascontiguousarray(values, dtype=np.float32)

    def norm(self, name, scale):
        self.put(name, scale - 1.0 if self.zero_centred else scale)

    def plain_norm(self, name, size, zero_centred=None):
        scale = 1.0 + 0.2 * self.normal(name, size)
        self.put(name, scale - 1.0 if (self.zero_centred if zero_centred is None else zero_centred) else scale)

    def linear(self, name, out, size, gain=1.0, scale=None):
        """[out, size] of which each row maps the expected input to about `gain`; scale: norm weights of the input."""
        if scale is None:
            columns = np.full(size, gain / np.sqrt(size))
        else:
            columns = gain / np.sqrt(np.abs(scale) * np.abs(scale).sum())
        self.put(name, self.normal(name, out, size) * columns)

    def output(self, name, size, gain):
        """A projection into the residual stream [hidden, size]; it leaves the class features nearly alone."""
        self.linear(name, self.config["hidden_size"], size, gain)
        self.tensors[name][self.class_features] *= 0.01

    def router(self, name, experts, scale, spacing=0.6):
        """[experts, hidden]: for each class the experts in a random order, scores well apart, and a little noise."""
        self.linear(name, experts, self.config["hidden_size"], 0.04, scale)
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode()), 1])
        for feature in self.class_features:
            self.tensors[name][:, feature] = (random.permutation(experts) - experts / 2) * spacing / scale[feature]

    def bias(self, name, size, gain=0.3):
        self.put(name, gain * self.normal(name, size))

    def embeddings(self, tied, head_in_file):
        vocab, hidden = self.config["vocab_size"], self.config["hidden_size"]
        table = self.normal("embed", vocab, hidden)
        table[:, self.features[0]] += 1.0  # one-sided outliers
        table[:, self.features[1]] -= 1.0
        classes = np.random.default_rng([self.seed, 3]).integers(0, CLASSES, vocab)
        table[:, self.class_features] = 0.02 * table[:, self.class_features] + 4.0 * np.eye(CLASSES)[classes]
        self.put("model.embed_tokens.weight", table)
        final = 1.0 + 0.3 * self.normal("model.norm.weight", hidden)
        if tied:
            final *= 2.0 / np.sqrt(hidden)
        self.norm("model.norm.weight", final)
        if tied and head_in_file:
            self.put("lm_head.weight", table)
        elif not tied:
            self.linear("lm_head.weight", vocab, hidden, gain=2.0)

    def glu(self, prefix, ffn, scale, names=("gate_proj", "up_proj", "down_proj"), biased=False, gain=1.5):
        hidden = self.config["hidden_size"]
        for name in names[:2]:
            self.linear(f"{prefix}.{name}.weight", ffn, hidden, 1.5, scale)
        self.output(f"{prefix}.{names[2]}.weight", ffn, gain)
        if biased:
            for name, size in zip(names, (ffn, ffn, hidden)):
                self.bias(f"{prefix}.{name}.bias", size)

    def attention(self, prefix, scale, bias=(), whole_norm=False, head_norm=False, gated=False):
        c = self.config
        heads, kv, hidden = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
        size = c.get("head_dim") or hidden // heads
        self.linear(f"{prefix}.q_proj.weight", heads * size * (2 if gated else 1), hidden, 1.3, scale)
        self.linear(f"{prefix}.k_proj.weight", kv * size, hidden, 1.3, scale)
        self.linear(f"{prefix}.v_proj.weight", kv * size, hidden, 1.0, scale)
        self.output(f"{prefix}.o_proj.weight", heads * size, 3.0 if gated else 1.5)
        for which in bias:
            self.bias(f"{prefix}.{which}_proj.bias", {"q": heads * size, "o": hidden}.get(which, kv * size))
        if whole_norm or head_norm:
            self.plain_norm(f"{prefix}.q_norm.weight", heads * size if whole_norm else size)
            self.plain_norm(f"{prefix}.k_norm.weight", kv * size if whole_norm else size)

    def experts(self, prefix, count, ffn, scale, names=("gate_proj", "up_proj", "down_proj")):
        for expert in range(count):
            self.glu(f"{prefix}.experts.{expert}", ffn, scale, names)

    def layer(self, index):
        """Norms of one layer; returns its name prefix and the two sites' norm weights."""
        prefix = f"model.layers.{index}"
        self.norm(f"{prefix}.input_layernorm.weight", self.site_scale[index, 0])
        self.norm(f"{prefix}.post_attention_layernorm.weight", self.site_scale[index, 1])
        return prefix, *self.site_scale[index]


def fill_olmoe(w, c):
    for index in range(c["num_hidden_layers"]):
        prefix, first, second = w.layer(index)
        w.attention(f"{prefix}.self_attn", first, whole_norm=True)
        w.router(f"{prefix}.mlp.gate.weight", c["num_experts"], second)
        w.experts(f"{prefix}.mlp", c["num_experts"], c["intermediate_size"], second)


def fill_mixtral(w, c):
    for index in range(c["num_hidden_layers"]):
        prefix, first, second = w.layer(index)
        w.attention(f"{prefix}.self_attn", first)
        block = f"{prefix}.block_sparse_moe"
        w.router(f"{block}.gate.weight", c["num_local_experts"], second)
        w.experts(block, c["num_local_experts"], c["intermediate_size"], second, ("w1", "w3", "w2"))


def is_sparse(c, index):
    return index not in c["mlp_only_layers"] and (index + 1) % c["decoder_sparse_step"] == 0


def fill_qwen3_moe(w, c):
    for index in range(c["num_hidden_layers"]):
        prefix, first, second = w.layer(index)
        w.attention(f"{prefix}.self_attn", first, head_norm=True)
        if is_sparse(c, index):
            w.router(f"{prefix}.mlp.gate.weight", c["num_experts"], second)
            w.experts(f"{prefix}.mlp", c["num_experts"], c["moe_intermediate_size"], second)
        else:
            w.glu(f"{prefix}.mlp", c["intermediate_size"], second)


def fill_dense(w, c):
    biases = "qkvo" if c["attention_bias"] else ""
    for index in range(c["num_hidden_layers"]):
        prefix, first, second = w.layer(index)
        w.attention(f"{prefix}.self_attn", first, biases, head_norm=c["model_type"] == "qwen3")
        w.glu(f"{prefix}.mlp", c["intermediate_size"], second, biased=c.get("mlp_bias", False))


def delta_net_layer(w, c, prefix, scale):
    keys = c["linear_num_key_heads"] * c["linear_key_head_dim"]
    heads, size = c["linear_num_value_heads"], c["linear_value_head_dim"]
    values, kernel = heads * size, c["linear_conv_kernel_dim"]
    w.linear(f"{prefix}.in_proj_qkvz.weight", 2 * keys + 2 * values, c["hidden_size"], 1.5, scale)
    w.linear(f"{prefix}.in_proj_ba.weight", 2 * heads, c["hidden_size"], 1.0, scale)
    w.put(f"{prefix}.conv1d.weight", 0.7 * w.normal(f"{prefix}.conv1d.weight", 2 * keys + values, 1, kernel))
    w.put(f"{prefix}.A_log", w.normal(f"{prefix}.A_log", heads) - 1.0)  # decays from almost none to strong
    w.put(f"{prefix}.dt_bias", w.normal(f"{prefix}.dt_bias", heads) - 1.0)
    w.plain_norm(f"{prefix}.norm.weight", size, zero_centred=False)
    w.output(f"{prefix}.out_proj.weight", values, 2.5)


def fill_qwen3_next(w, c):
    for index in range(c["num_hidden_layers"]):
        prefix, first, second = w.layer(index)
        if (index + 1) % c["full_attention_interval"] == 0:
            w.attention(f"{prefix}.self_attn", first, head_norm=True, gated=True)
        else:
            delta_net_layer(w, c, f"{prefix}.linear_attn", first)
        if not is_sparse(c, index):
            w.glu(f"{prefix}.mlp", c["intermediate_size"], second)
            continue
        w.router(f"{prefix}.mlp.gate.weight", c["num_experts"], second)
        w.experts(f"{prefix}.mlp", c["num_experts"], c["moe_intermediate_size"], second)
        w.glu(f"{prefix}.mlp.shared_expert", c["shared_expert_intermediate_size"], second)
        w.linear(f"{prefix}.mlp.shared_expert_gate.weight", 1, c["hidden_size"], 1.5, second)


def fill_glm4_moe(w, c):
    for index in range(c["num_hidden_layers"]):
        prefix, first, second = w.layer(index)
        w.attention(f"{prefix}.self_attn", first, "qkv" if c["attention_bias"] else "", head_norm=c["use_qk_norm"])
        if index < c["first_k_dense_replace"]:
            w.glu(f"{prefix}.mlp", c["intermediate_size"], second)
            continue
        w.router(f"{prefix}.mlp.gate.weight", c["n_routed_experts"], second, spacing=0.25)  # sigmoid
        w.bias(f"{prefix}.mlp.gate.e_score_correction_bias", c["n_routed_experts"], 0.15)
        w.experts(f"{prefix}.mlp", c["n_routed_experts"], c["moe_intermediate_size"], second)
        w.glu(f"{prefix}.mlp.shared_experts", c["moe_intermediate_size"] * c["n_shared_experts"], second)


def fill_gpt_oss(w, c):
    count, ffn, hidden = c["num_local_experts"], c["intermediate_size"], c["hidden_size"]
    for index in range(c["num_hidden_layers"]):
        prefix, first, second = w.layer(index)
        w.attention(f"{prefix}.self_attn", first, "qkvo")
        w.tensors[f"{prefix}.self_attn.o_proj.bias"][w.class_features] *= 0.01
        w.bias(f"{prefix}.self_attn.sinks", c["num_attention_heads"], 1.5)
        w.router(f"{prefix}.mlp.router.weight", count, second)
        w.bias(f"{prefix}.mlp.router.bias", count, 0.05)
        stacks = {"gate_up_proj": [], "gate_up_proj_bias": [], "down_proj": [], "down_proj_bias": []}
        for expert in range(count):
            one = f"{prefix}.mlp.experts.{expert}"
            w.linear(f"{one}.gate_up", 2 * ffn, hidden, 3.0, second)  # large enough to be clamped now and then
            w.output(f"{one}.down", ffn, 0.3)
            w.bias(f"{one}.gate_up_bias", 2 * ffn)
            w.bias(f"{one}.down_bias", hidden)
            w.tensors[f"{one}.down_bias"][w.class_features] *= 0.01
            for stack, name in zip(stacks.values(), ("gate_up", "gate_up_bias", "down", "down_bias")):
                stack.append(w.tensors.pop(f"{one}.{name}"))
        for name, stack in stacks.items():  # without MXFP4 the hub's matrices are [E, in, out]
            values = np.stack(stack)
            w.put(f"{prefix}.mlp.experts.{name}", values if name.endswith("bias") else values.transpose(0, 2, 1))


FILL = {
    "olmoe": fill_olmoe,
    "mixtral": fill_mixtral,
    "qwen3_moe": fill_qwen3_moe,
    "qwen3": fill_dense,
    "llama": fill_dense,
    "qwen3_next": fill_qwen3_next,
    "glm4_moe": fill_glm4_moe,
    "gpt_oss": fill_gpt_oss,
}


def make_twins(tensors, a, b):
    """Expert b becomes expert a: the tensors of a's own, its slice of stacked ones and its rows of router tensors."""
    for name in list(tensors):
        if f".experts.{a}." in name:
            tensors[name.replace(f".experts.{a}.", f".experts.{b}.")] = tensors[name].copy()
        elif (
            ".experts." not in name
            and (".gate." in name or ".router." in name)
            or ".mlp.experts.gate_up_proj" in name
            or ".mlp.experts.down_proj" in name
        ):
            tensors[name][b] = tensors[name][a]


def unused_tensors(config, weights):
    """Tensors of a next-token-prediction layer, which the hub's files hold and the model doesn't use."""
    hidden, vocab, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    if config["model_type"] == "qwen3_next":
        shapes = {
            "mtp.fc.weight": (hidden, 2 * hidden),
            "mtp.norm.weight": (hidden,),
            "mtp.layers.0.input_layernorm.weight": (hidden,),
            "mtp.layers.0.mlp.experts.0.up_proj.weight": (11, hidden),
        }
    else:
        extra = f"model.layers.{layers}"
        shapes = {
            f"{extra}.eh_proj.weight": (hidden, 2 * hidden),
            f"{extra}.enorm.weight": (hidden,),
            f"{extra}.input_layernorm.weight": (hidden,),
            f"{extra}.self_attn.q_proj.weight": (24, hidden),
            f"{extra}.mlp.experts.0.up_proj.weight": (11, hidden),
            f"{extra}.embed_tokens.weight": (vocab, hidden),
        }
    return {name: weights.normal(name, *size) for name, size in shapes.items()}


def draw(reference):
    """{hub name: float32 array} of a checkpoint."""
    config = reference.config
    weights = Weights(config, reference.seed)
    weights.embeddings(config["tie_word_embeddings"], reference.head_in_file)
    FILL[config["model_type"]](weights, config)
    if reference.twins:
        make_twins(weights.tensors, *reference.twins)
    if reference.mtp:
        weights.tensors |= unused_tensors(config, weights)
    return weights.tensors
