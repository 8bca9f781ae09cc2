"""What a folder of model_type "fwp" computes: plain NumPy in float64, token by token, one state per head.

The independent implementation that server and importer are held against (tests/golden_paper). Slow, and meant to
be read beside the papers: 2102.11174, and 1901.02860 for Transformer-XL.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training import weights_file
from training.checkpoint import SINGLE

EPS = 1e-5
Array = np.ndarray


def _layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + EPS) * weight + bias


def _log_softmax(x: Array) -> Array:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def _sinusoid(position: float, width: int) -> Array:
    angles = position * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)])


@dataclass
class LayerState:
    """What a layer keeps of the tokens before: a fast weight and its normaliser, or keys and values of a window."""

    fast_weight: Array | None = None  # [H, E, d]
    normaliser: Array | None = None  # [H, E]; all zero: fresh
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)


class Model:
    """A folder, evaluated one stream at a time: `reset`, then `step` for each token."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors = {name: values.astype(np.float64) for name, values in weights_file.read(folder / SINGLE).items()}
        self.heads, self.dim = self.config["num_heads"], self.config["head_dim"]
        self.limits = [0, *self.config["cutoffs"], self.config["vocab_size"]]
        self.reset()

    def reset(self) -> None:
        """Begins a stream: no state, position 0."""
        self.states = [LayerState() for _ in range(self.config["num_hidden_layers"])]
        self.position = 0

    def step(self, token: int) -> Array:
        """Takes one token in, returns the log-probabilities [V] of the next."""
        x = self._embed(token)
        if self.config["positions"] == "sinusoidal":
            length = self.config["segment_length"]
            x = x + _sinusoid(length - 1 - self.position % length, len(x))
        for number, state in enumerate(self.states):
            x = self._layer(number, state, x)
        self.position += 1
        return self._output(x)

    def run(self, tokens: Array, reset_every: int = 0) -> Array:
        """Log-probabilities [T, V] after each token; the stream begins anew every `reset_every` tokens, if given."""
        rows = []
        self.reset()
        for at, token in enumerate(tokens):
            if reset_every and at % reset_every == 0:
                self.reset()
            rows.append(self.step(int(token)))
        return np.array(rows)

    def _cluster(self, token: int) -> int:
        return next(i for i in range(len(self.limits) - 1) if token < self.limits[i + 1])

    def _embed(self, token: int) -> Array:
        i = self._cluster(token) if self.config["div_val"] > 1 else 0
        x = self.tensors[f"model.embeddings.{i}.weight"][token - self.limits[i]]
        projection = self.tensors.get(f"model.embedding_projections.{i}.weight")
        return (x if projection is None else projection @ x) * np.sqrt(self.config["hidden_size"])

    def _layer(self, number: int, state: LayerState, x: Array) -> Array:
        def tensor(name: str) -> Array:
            return self.tensors[f"model.layers.{number}.{name}"]

        def norm(name: str, y: Array) -> Array:
            return _layer_norm(y, tensor(f"{name}.weight"), tensor(f"{name}.bias"))

        placement = self.config["norm_placement"]
        post = placement == "post"
        normed = x if post else norm("attn_norm", x)
        query_input = x if placement == "pre_raw_query" else normed
        residual = normed if placement == "pre_normed_residual" else x
        q = (tensor("attn.q_proj.weight") @ query_input).reshape(self.heads, self.dim)
        k = (tensor("attn.k_proj.weight") @ normed).reshape(self.heads, self.dim)
        v = (tensor("attn.v_proj.weight") @ normed).reshape(self.heads, self.dim)
        if self.config["mixer"] == "softmax":
            y = self._window(number, state, q, k, v)
        else:
            beta = None
            if self.config["update_rule"] == "delta":
                beta = 1 / (1 + np.exp(-(tensor("attn.b_proj.weight") @ normed)))
            projection = self.tensors.get(f"model.layers.{number}.attn.feature_projection")
            y = self._fast_weight(state, self._features(q, projection), self._features(k, projection), v, beta)
        x = residual + tensor("attn.o_proj.weight") @ y.reshape(-1)
        x = norm("attn_norm", x) if post else x
        hidden = x if post else norm("mlp_norm", x)
        hidden = np.maximum(tensor("mlp.up_proj.weight") @ hidden + tensor("mlp.up_proj.bias"), 0)
        x = x + tensor("mlp.down_proj.weight") @ hidden + tensor("mlp.down_proj.bias")
        return norm("mlp_norm", x) if post else x

    def _features(self, x: Array, projection: Array | None) -> Array:
        kind = self.config["feature_map"]
        if kind == "elu1":
            x = np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
        elif kind == "dpfp":
            r = np.maximum(np.concatenate([x, -x], axis=1), 0)
            x = np.concatenate([r * np.roll(r, i, axis=1) for i in range(1, self.config["dpfp_nu"] + 1)], axis=1)
        elif kind == "favor":
            assert projection is not None
            u, offset = x @ projection.T, -0.5 * (x**2).sum(1, keepdims=True)
            x = np.concatenate([np.exp(offset + u), np.exp(offset - u)], axis=1) + 1e-4
            x = x / np.sqrt(2 * len(projection))
        if self.config["qk_norm"] == "sum":
            sums = x.sum(1, keepdims=True)
            x = np.divide(x, sums, out=np.zeros_like(x), where=sums != 0)
        return x

    def _fast_weight(self, state: LayerState, q: Array, k: Array, v: Array, beta: Array | None) -> Array:
        if state.fast_weight is None or state.normaliser is None:
            state.fast_weight = np.zeros((self.heads, k.shape[1], self.dim))
            state.normaliser = np.zeros_like(k)
        scale, norm = self.dim**-0.5, self.config["attention_norm"]
        y = np.empty_like(v)
        for h in range(self.heads):
            s, z, key = state.fast_weight[h], state.normaliser[h], k[h]
            if beta is None:
                s += np.outer(key, v[h])
            else:
                rate = beta[h]
                if norm == "key_and_output":
                    past = z @ key if z.any() else 1.0
                    rate, key = rate * past, key / (past + EPS)
                s += np.outer(key, rate * (v[h] - key @ s))
            z += k[h]
            y[h] = scale * (q[h] @ s)
            if norm != "none":
                y[h] /= (scale if self.config["scaled_denominator"] else 1.0) * (z @ q[h]) + EPS
        return y

    def _window(self, number: int, state: LayerState, q: Array, k: Array, v: Array) -> Array:
        relative = self.config["positions"] == "relative"
        segment, memory = self.config["segment_length"], self.config["memory_length"] if relative else 0
        if self.position % segment == 0:
            keep = len(state.keys) - memory
            del state.keys[: max(keep, 0)], state.values[: max(keep, 0)]
        state.keys.append(k)
        state.values.append(v)
        keys, values = np.array(state.keys), np.array(state.values)  # [n, H, d]
        if relative:
            width, clamp = self.config["hidden_size"], self.config["clamp_length"]
            distances = np.arange(len(keys) - 1, -1, -1)
            if clamp > 0:
                distances = np.minimum(distances, clamp)
            project = self.tensors[f"model.layers.{number}.attn.r_proj.weight"]
            r = np.array([project @ _sinusoid(float(n), width) for n in distances]).reshape(
                len(keys), self.heads, self.dim
            )
            scores = np.einsum("hd,nhd->hn", q + self.tensors["model.content_bias"], keys)
            scores += np.einsum("hd,nhd->hn", q + self.tensors["model.position_bias"], r)
        else:
            scores = np.einsum("hd,nhd->hn", q, keys)
        weights = np.exp(np.array([_log_softmax(row) for row in scores * self.dim**-0.5]))
        return np.einsum("hn,nhd->hd", weights, values)

    def _projected(self, i: int, x: Array) -> Array:
        """The hidden vector as cluster i sees it."""
        tied = self.config.get("tie_projections", [False] * len(self.limits))
        if tied[i]:
            other = i if self.config["div_val"] > 1 else 0
            return self.tensors[f"model.embedding_projections.{other}.weight"].T @ x
        projection = self.tensors.get(f"lm_head.projections.{i}.weight")
        return x if projection is None else projection @ x

    def _output(self, x: Array) -> Array:
        clusters = len(self.limits) - 2
        parts = []
        for i, (low, high) in enumerate(itertools.pairwise(self.limits)):
            table = "model.embeddings" if self.config["tie_word_embeddings"] else "lm_head"
            if self.config["div_val"] > 1:
                weight, bias = self.tensors[f"{table}.{i}.weight"], self.tensors[f"lm_head.{i}.bias"]
            else:
                weight = self.tensors[f"{table}.0.weight"][low:high]
                bias = self.tensors["lm_head.0.bias"][low:high]
            hidden = self._projected(i, x)
            logits = weight @ hidden + bias
            if i == 0 and clusters:
                chosen = self.tensors["lm_head.clusters.weight"] @ hidden + self.tensors["lm_head.clusters.bias"]
                logits = np.concatenate([logits, chosen])
            parts.append(_log_softmax(logits))
        head = parts[0]
        first = self.limits[1]
        # The rows of the clusters are in reverse: the last is the first cluster's.
        tails = [head[first + clusters - i] + parts[i] for i in range(1, clusters + 1)]
        return np.concatenate([head[:first], *tails])
