"""What checkpoints of flash-linear-attention compute: plain NumPy in float64, the state carried token by token.

The second implementation that golden models are held against (tests/golden, tests/golden_fla): written from the
equations, where training/mixer.py is what is trained and training/fla_goldens.py runs the library's own classes.
Families: delta_net, gated_deltanet, gated_deltaproduct, kda, gla, linear_attn. Slow, and meant to be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from training import weights_file
from training.families import with_defaults

Array = np.ndarray

GLA_GATE_DIVISOR = 16
DPFP_NU = 4


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _elu1(x: Array) -> Array:
    return np.where(x >= 0, x + 1, np.exp(np.minimum(x, 0)))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


# gla's names; sqrelu is relu(x)^2.
MAPS = {
    "relu": _relu,
    "sigmoid": _sigmoid,
    "logsigmoid": lambda x: -_softplus(-x),
    "silu": _silu,
    "swish": _silu,
    "sqrelu": lambda x: _relu(x) ** 2,
    "gelu": _gelu_tanh,
}


def _l2(x: Array) -> Array:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def _dpfp(x: Array) -> Array:
    parts = np.concatenate([_relu(x), _relu(-x)], -1)
    return np.concatenate([parts * np.roll(parts, shift, -1) for shift in range(1, DPFP_NU + 1)], -1)


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _heads(x: Array, width: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, width)


def _per_value_head(x: Array, heads: int) -> Array:
    """[..., H, d] to [..., HV, d]: value head j has key head floor(j / (HV / H))."""
    return np.repeat(x, heads // x.shape[-2], axis=-2)


def fast_weights(q: Array, k: Array, v: Array, beta: Array | None, decay: Array | None) -> Array:
    """The state's way through the tokens, [T, H, V]: what queries read from it.

    q [T, H, K] (scaled); k [T, n, H, K], v [T, n, H, V] and beta [T, n, H] for n writes a token; decay [T, H, K] or
    [T, H, 1], the logarithm. Without beta values are added (sum rule), with it they replace (delta rule).
    """
    length, writes, heads, width = v.shape
    state = np.zeros((heads, width, k.shape[-1]))
    read = np.empty((length, heads, width))
    for t in range(length):
        if decay is not None:
            state = state * np.exp(decay[t])[:, None, :]
        for j in range(writes):
            value = v[t, j]
            if beta is not None:
                value = beta[t, j][:, None] * (value - np.einsum("hvk,hk->hv", state, k[t, j]))
            state = state + value[:, :, None] * k[t, j][:, None, :]
        read[t] = np.einsum("hvk,hk->hv", state, q[t])
    return read


class Model:
    """A folder, evaluated on one stream that begins with an empty state."""

    def __init__(self, folder: Path) -> None:
        self.config = with_defaults(json.loads((folder / "config.json").read_text()))
        self.family = self.config["model_type"]
        self.tensors: dict[str, Array] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            self.tensors.update({name: values.astype(np.float64) for name, values in weights_file.read(path).items()})
        self.mixer = getattr(self, f"_{self.family}")

    def run(self, tokens: Array) -> Array:
        """Log-probabilities [T, R] after each token."""
        embeddings = self.tensors["model.embeddings.weight"]
        x = embeddings[tokens]
        for number in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{number}."
            self.prefix = layer + "attn."
            x = x + self._linear("o_proj", self.mixer(self._norm(x, layer + "attn_norm.weight")))
            self.prefix = layer + "mlp."
            h = self._norm(x, layer + "mlp_norm.weight")
            x = x + self._linear("down_proj", _silu(self._linear("gate_proj", h)) * self._linear("up_proj", h))
        head = embeddings if self.config["tie_word_embeddings"] else self.tensors["lm_head.weight"]
        logits = self._norm(x, "model.norm.weight") @ head.T
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def _norm(self, x: Array, name: str) -> Array:
        y = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["norm_eps"])
        return y * self.tensors[name] if name in self.tensors else y  # none: elementwise_affine false

    def _linear(self, name: str, x: Array) -> Array:
        y = x @ self.tensors[f"{self.prefix}{name}.weight"].T
        return y + self.tensors.get(f"{self.prefix}{name}.bias", 0)

    def _conv(self, name: str, x: Array) -> Array:
        weight = self.tensors[f"{self.prefix}{name}.weight"][:, 0]  # [channels, W]; the last column is the present
        width = weight.shape[1]
        padded = np.concatenate([np.zeros((width - 1, x.shape[1])), x])
        y = sum(padded[j : j + len(x)] * weight[:, j] for j in range(width))
        return y + self.tensors.get(f"{self.prefix}{name}.bias", 0)

    def _projected(self, h: Array, letter: str, activation: Any = _silu) -> Array:
        y = self._linear(f"{letter}_proj", h)
        return activation(self._conv(f"{letter}_conv1d", y) if self.config["use_short_conv"] else y)

    def _beta(self, h: Array) -> Array:
        return _sigmoid(self._linear("b_proj", h)) * (2 if self.config["allow_neg_eigval"] else 1)

    def _gated_decay(self, logits: Array) -> Array:
        """-exp(A_log) softplus(logits + dt_bias); logits [T, HV * n]."""
        scale, bias = self.tensors[self.prefix + "A_log"], self.tensors[self.prefix + "dt_bias"]
        return -np.exp(scale)[:, None] * _heads(_softplus(logits + bias), len(bias) // len(scale))

    def _output(self, read: Array, gate: Array | None, activation: Any, norm: str = "o_norm") -> Array:
        y = self._norm(read, f"{self.prefix}{norm}.weight")
        if gate is not None:
            y = y * activation(_heads(gate, y.shape[-1]))
        return y.reshape(len(y), -1)

    def _delta_net(self, h: Array) -> Array:
        config, heads = self.config, self.config["num_heads"]
        maps = {"silu": _silu, "relu": _relu, "elu": _elu1, "identity": lambda x: x}
        activation = maps[config["qk_activation"]]
        q, k = self._projected(h, "q", activation), self._projected(h, "k", activation)
        v = self._projected(h, "v")
        q, k, v = (_heads(x, x.shape[1] // heads) for x in (q, k, v))
        if config["qk_norm"] == "l2":
            q, k = _l2(q), _l2(k)
        else:
            q, k = (x / np.maximum(np.abs(x).sum(-1, keepdims=True), 1e-6) for x in (q, k))
        if config["use_beta"]:
            beta = self._beta(h)
        else:
            beta = np.full((len(h), heads), 2.0 if config["allow_neg_eigval"] else 1.0)
        read = fast_weights(q * q.shape[-1] ** -0.5, k[:, None], v[:, None], beta[:, None], None)
        return self._output(read, self._linear("g_proj", h) if config["use_gate"] else None, _silu)

    def _gated_deltanet(self, h: Array) -> Array:
        config = self.config
        heads = config["num_v_heads"] or config["num_heads"]
        q, k = (_per_value_head(_l2(_heads(self._projected(h, c), config["head_dim"])), heads) for c in "qk")
        v = self._projected(h, "v").reshape(len(h), heads, -1)
        decay = self._gated_decay(self._linear("a_proj", h))
        q = q * config["head_dim"] ** -0.5
        read = fast_weights(q, k[:, None], v[:, None], self._beta(h)[:, None], decay)
        activation = _sigmoid if config["output_gate_activation"] == "sigmoid" else _silu
        return self._output(read, self._linear("g_proj", h) if config["use_gate"] else None, activation)

    def _gated_deltaproduct(self, h: Array) -> Array:
        config = self.config
        heads, writes, width = config["num_heads"], config["num_householder"], config["head_dim"]
        q = _l2(_heads(self._projected(h, "q"), width)) * width**-0.5
        k = _l2(self._projected(h, "k").reshape(len(h), writes, heads, width))
        v = self._projected(h, "v").reshape(len(h), writes, heads, -1)
        beta = self._beta(h).reshape(len(h), writes, heads)
        decay = self._gated_decay(self._linear("a_proj", h)) if config["use_forget_gate"] else None
        read = fast_weights(q, k, v, beta, decay)
        return self._output(read, self._linear("g_proj", h) if config["use_output_gate"] else None, _silu)

    def _kda(self, h: Array) -> Array:
        config = self.config
        heads = config["num_v_heads"] or config["num_heads"]
        q, k = (_per_value_head(_l2(_heads(self._projected(h, c), config["head_dim"])), heads) for c in "qk")
        v = self._projected(h, "v").reshape(len(h), heads, -1)
        logits = self._linear("f_proj.1", self._linear("f_proj.0", h))
        if config["lower_bound"] is None:
            decay = self._gated_decay(logits)
        else:
            logits = _heads(logits + self.tensors[self.prefix + "dt_bias"], config["head_dim"])
            decay = config["lower_bound"] * _sigmoid(np.exp(self.tensors[self.prefix + "A_log"])[:, None] * logits)
        q = q * config["head_dim"] ** -0.5
        read = fast_weights(q, k[:, None], v[:, None], self._beta(h)[:, None], decay)
        return self._output(read, self._linear("g_proj.1", self._linear("g_proj.0", h)), _sigmoid)

    def _gla(self, h: Array) -> Array:
        config, heads = self.config, self.config["num_heads"]
        groups = heads // (config["num_kv_heads"] or heads)
        activation = _silu if config["use_short_conv"] else lambda x: x
        q = _heads(self._projected(h, "q", activation), len(self.tensors[self.prefix + "q_proj.weight"]) // heads)
        k, v = (self._projected(h, c, activation).reshape(len(h), heads // groups, -1) for c in "kv")
        decay = -_softplus(-self._linear("gk_proj.1", self._linear("gk_proj.0", h))) / GLA_GATE_DIVISOR
        if config["clamp_min"] is not None:
            decay = np.maximum(decay, config["clamp_min"])
        k, v, decay = (_per_value_head(x, heads) for x in (k, v, decay.reshape(k.shape)))
        if config["feature_map"] is not None:
            q, k = MAPS[config["feature_map"]](q), MAPS[config["feature_map"]](k)
        read = fast_weights(q * q.shape[-1] ** -0.5, k[:, None], v[:, None], None, decay)
        norm = "g_norm_swish_gate" if self.prefix + "g_norm_swish_gate.weight" in self.tensors else "g_norm"
        return self._output(read, self._linear("g_proj", h) if config["use_output_gate"] else None, _silu, norm)

    def _mapped(self, x: Array, letter: str) -> Array:
        name, kind = f"feature_map_{letter}", self.config["feature_map"]
        if kind in ("elementwise_product", "t2r", "hedgehog") and not any(
            tensor.startswith(f"{self.prefix}{name}.") for tensor in self.tensors
        ):
            name = "feature_map_k" if letter == "q" else "feature_map_q"  # tied: the file has it once
        if kind == "elementwise_product":
            return self._linear(f"{name}.layer1", x) * self._linear(f"{name}.layer2", x)
        if kind == "t2r":
            return _relu(self._linear(f"{name}.layer", x))
        if kind == "hedgehog":
            y = 2 * self._linear(f"{name}.layer", x)
            return _softmax(np.concatenate([y, -y], -1))
        return {"elu": _elu1, "relu": _relu, "identity": lambda y: y, "dpfp": _dpfp}[kind](x)

    def _linear_attn(self, h: Array) -> Array:
        config, heads = self.config, self.config["num_heads"]
        groups = heads // (config["num_kv_heads"] or heads)
        q = _heads(self._linear("q_proj", h), len(self.tensors[self.prefix + "q_proj.weight"]) // heads)
        k, v = (self._linear(f"{c}_proj", h).reshape(len(h), heads // groups, -1) for c in "kv")
        k, v = _per_value_head(k, heads), _per_value_head(v, heads)
        q, k = self._mapped(q, "q"), self._mapped(k, "k")
        if config["norm_q"]:
            q = q / (q.sum(-1, keepdims=True) + 1e-4)
        if config["norm_k"]:
            k = k / (k.sum(-1, keepdims=True) + 1e-4)
        q = q * q.shape[-1] ** -0.5
        read = fast_weights(q, k[:, None], v[:, None], None, None)
        if config["norm_feature_map"]:
            read = read / ((q * np.cumsum(k, axis=0)).sum(-1, keepdims=True) + 1e-10)
        return self._output(read, None, None, "norm")
