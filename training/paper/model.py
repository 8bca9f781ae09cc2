"""The paper's language model, without positions: post-norm blocks of a mixer and a ReLU layer, tied embeddings.

Parameter names are the tensor names of `model_type: fwp` (server/model/README.md). A model without positions can carry
its state from segment to segment, and then segmentation is invisible: any split of a text gives the same numbers.

Letters: B batch, T tokens, H heads, d head width, E features, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.mixer import chunked_rule, recurrent_rule
from training.paper.features import draw_projection, features

EPS = 1e-5


@dataclass(frozen=True)
class MixerSettings:
    """What distinguishes the systems; the words are those of config.json."""

    mixer: Literal["fast_weight", "softmax"] = "fast_weight"
    update_rule: Literal["sum", "delta"] = "sum"
    feature_map: Literal["identity", "elu1", "dpfp", "favor"] = "elu1"
    dpfp_nu: int = 1
    favor_features: int = 16  # m; there are 2 m features
    qk_norm: Literal["none", "sum"] = "none"
    attention_norm: Literal["none", "output", "key_and_output"] = "none"


@dataclass(frozen=True)
class Shape:
    """What the systems share."""

    vocab_size: int
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    head_dim: int = 32
    intermediate_size: int = 512
    segment_length: int = 128  # tokens of a training segment, and of softmax's window


class MixerState(NamedTuple):
    """What one layer remembers."""

    memory: Tensor  # fast weights [B,H,d,E]; softmax: the last keys and values [B,window-1,2,H,d]
    accumulator: Tensor  # z [B,H,E], the sum of the keys; zero is fresh
    tokens: int = 0  # how many have been seen (softmax: rows of the memory before that are empty)


State = list[MixerState]


class Mixer(nn.Module):
    """`chunk` is the chunk length of the parallel form, 0 for the recurrent one, which is the definition."""

    def __init__(self, shape: Shape, settings: MixerSettings, chunk: int) -> None:
        super().__init__()
        self.shape, self.settings, self.chunk = shape, settings, chunk
        width, inner = shape.hidden_size, shape.heads * shape.head_dim
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        if self._delta:
            self.b_proj = nn.Linear(width, shape.heads, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)
        if settings.feature_map == "favor" and settings.mixer == "fast_weight":
            self.register_buffer("feature_projection", draw_projection(shape.head_dim, settings.favor_features))

    @property
    def _delta(self) -> bool:
        return self.settings.mixer == "fast_weight" and self.settings.update_rule == "delta"

    def redraw(self) -> None:
        """A new random projection of FAVOR+, as for every step of training."""
        if hasattr(self, "feature_projection"):
            self.feature_projection = draw_projection(self.shape.head_dim, self.settings.favor_features)

    def initial_state(self, batch: int) -> MixerState:
        """Before the first token."""
        s, like = self.shape, self.o_proj.weight
        if self.settings.mixer == "softmax":
            ring = like.new_zeros(batch, s.segment_length - 1, 2, s.heads, s.head_dim)
            return MixerState(ring, like.new_zeros(0))
        count = self._features(like.new_zeros(s.head_dim)).shape[-1]
        return MixerState(like.new_zeros(batch, s.heads, s.head_dim, count), like.new_zeros(batch, s.heads, count))

    def _features(self, x: Tensor) -> Tensor:
        s = self.settings
        mapped = features(x, s.feature_map, rolls=s.dpfp_nu, projection=getattr(self, "feature_projection", None))
        if s.qk_norm == "none":
            return mapped
        total = mapped.sum(-1, keepdim=True)
        return mapped / torch.where(total == 0, 1, total)  # as the server: features that sum to zero stay zero

    def forward(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """x [B,T,D] -> y [B,T,D] and the state after it."""

        def heads(layer: nn.Linear) -> Tensor:  # [B,T,H,d]
            return layer(x).unflatten(-1, (self.shape.heads, self.shape.head_dim))

        q, k, v = heads(self.q_proj), heads(self.k_proj), heads(self.v_proj)
        if self.settings.mixer == "softmax":
            out, state = self._window(q, k, v, state)
        else:
            beta = self.b_proj(x).sigmoid() if self._delta else torch.ones_like(v[..., 0])
            out, state = self._fast_weights(self._features(q), self._features(k), v, beta, state)
        return self.o_proj(out.flatten(-2)), state

    def _window(self, q: Tensor, k: Tensor, v: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Each token sees itself and the segment_length - 1 tokens before it."""
        window, new = self.shape.segment_length, torch.stack((k, v), 2)
        both = torch.cat((state.memory, new), 1)
        age = torch.arange(window - 1, window - 1 + q.shape[1])[:, None] - torch.arange(both.shape[1])
        empty = torch.arange(both.shape[1]) < window - 1 - state.tokens
        seen = (age >= 0) & (age < window) & ~empty
        keys, values = both.unbind(2)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=seen
        ).transpose(1, 2)
        return out, MixerState(both[:, both.shape[1] - (window - 1) :], state.accumulator, state.tokens + q.shape[1])

    def _fast_weights(
        self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: MixerState
    ) -> tuple[Tensor, MixerState]:
        """q, k [B,T,H,E] mapped, v [B,T,H,d], beta [B,T,H]."""
        z, norm = state.accumulator, self.settings.attention_norm
        if norm != "none":
            k, beta, scale, z = (self._normalise_by_chunk if self.chunk else self._normalise_by_token)(q, k, beta, z)
            q = q * scale[..., None]
        q = q * self.shape.head_dim**-0.5
        if self.chunk:
            out, memory = chunked_rule(q, k, v, beta, None, state.memory, delta=self._delta, chunk=self.chunk)
        else:
            out, memory = recurrent_rule(q, k, v, beta, None, state.memory, delta=self._delta)
        return out, MixerState(memory, z, state.tokens + q.shape[1])

    def _normalise_by_token(
        self, q: Tensor, k: Tensor, beta: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The keys and betas to write with, 1 / (z q + eps) for the reads, and the accumulator afterwards."""
        keys, betas, scales = [], [], []
        for t in range(q.shape[1]):
            key = k[:, t]
            if self.settings.attention_norm == "key_and_output":
                seen = (z * key).sum(-1)
                seen = torch.where((z == 0).all(-1), 1.0, seen)  # a fresh state divides by one
                keys.append(key / (seen + EPS)[..., None])
                betas.append(beta[:, t] * seen)
            z = z + key
            scales.append(1 / ((z * q[:, t]).sum(-1) + EPS))
        if keys:
            k, beta = torch.stack(keys, 1), torch.stack(betas, 1)
        return k, beta, torch.stack(scales, 1), z

    def _normalise_by_chunk(
        self, q: Tensor, k: Tensor, beta: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same for all tokens at once: z before and after each is a running sum."""
        after = z[:, None] + k.cumsum(1)
        scale = 1 / ((after * q).sum(-1) + EPS)
        if self.settings.attention_norm == "key_and_output":
            before = torch.cat((z[:, None], after[:, :-1]), 1)
            seen = torch.where((before == 0).all(-1), 1.0, (before * k).sum(-1))
            k, beta = k / (seen + EPS)[..., None], beta * seen
        return k, beta, scale, after[:, -1]


class FeedForward(nn.Module):
    """down(relu(up x))."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,T,D] -> y [B,T,D]."""
        return self.down_proj(F.relu(self.up_proj(x)))


class Block(nn.Module):
    """A mixer and a feed-forward layer, each added to the stream and normalised with it."""

    def __init__(self, shape: Shape, settings: MixerSettings, chunk: int) -> None:
        super().__init__()
        self.attn = Mixer(shape, settings, chunk)
        self.attn_norm = nn.LayerNorm(shape.hidden_size, EPS)
        self.mlp = FeedForward(shape.hidden_size, shape.intermediate_size)
        self.mlp_norm = nn.LayerNorm(shape.hidden_size, EPS)

    def forward(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """x [B,T,D] -> x [B,T,D] and the mixer's state after it."""
        y, state = self.attn(x, state)
        x = self.attn_norm(x + y)
        return self.mlp_norm(x + self.mlp(x)), state


class Backbone(nn.Module):
    """Everything but the head; named `model` in checkpoints."""

    def __init__(self, shape: Shape, settings: MixerSettings, chunk: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(shape.vocab_size, shape.hidden_size)])
        self.layers = nn.ModuleList(Block(shape, settings, chunk) for _ in range(shape.layers))


class Head(nn.Module):
    """Holds the bias of the logits; their matrix is the embeddings'."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))


class PaperModel(nn.Module):
    """tokens -> logits, with a state that may be carried."""

    def __init__(self, shape: Shape, settings: MixerSettings, *, chunk: int = 64) -> None:
        super().__init__()
        self.shape, self.settings = shape, settings
        self.model = Backbone(shape, settings, chunk)
        self.lm_head = nn.ModuleList([Head(shape.vocab_size)])

    def initial_state(self, batch: int) -> State:
        """Before the first token."""
        return [layer.attn.initial_state(batch) for layer in self.model.layers]

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens [B,T] -> logits [B,T,V] for the token after each, and the state after all of them."""
        embeddings = self.model.embeddings[0]
        x, new = embeddings(tokens) * self.shape.hidden_size**0.5, []
        for layer, layer_state in zip(self.model.layers, state, strict=True):
            x, layer_state = layer(x, layer_state)
            new.append(layer_state)
        return F.linear(x, embeddings.weight, self.lm_head[0].bias), new

    def redraw(self) -> None:
        """New random projections in every layer, for those that have them."""
        for layer in self.model.layers:
            layer.attn.redraw()

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """The paper's: matrices N(0, 0.02), norms' gains N(1, 0.02), biases zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.02, generator=generator)

    def config(self) -> dict[str, Any]:
        """config.json of the exported folder."""
        s, m = self.shape, self.settings
        common = {
            "architectures": ["FastWeightProgrammer"],
            "model_type": "fwp",
            "vocab_size": s.vocab_size,
            "hidden_size": s.hidden_size,
            "embedding_size": s.hidden_size,
            "num_hidden_layers": s.layers,
            "num_heads": s.heads,
            "head_dim": s.head_dim,
            "intermediate_size": s.intermediate_size,
            "cutoffs": [],
            "div_val": 1,
            "tie_word_embeddings": True,
            "norm_placement": "post",
            "positions": "none",
            "mixer": m.mixer,
        }
        if m.mixer == "softmax":
            special: dict[str, Any] = {"segment_length": s.segment_length}
        else:
            special = {
                "update_rule": m.update_rule,
                "feature_map": m.feature_map,
                "qk_norm": m.qk_norm,
                "attention_norm": m.attention_norm,
                "scaled_denominator": False,
            }
            if m.feature_map == "dpfp":
                special["dpfp_nu"] = m.dpfp_nu
            if m.feature_map == "favor":
                special["favor_features"] = m.favor_features
        return {**common, **special, "bos_token_id": None, "eos_token_id": None, "torch_dtype": "float32"}
