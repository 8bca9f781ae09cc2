"""What a fast-weight model is, as data: one mixer with settings, and the Hugging Face configs that select them.

Nothing here needs PyTorch. The names of tensors and config keys are those of flash-linear-attention (fla).
Letters: D hidden size, I inner size of the MLP, R vocabulary, H query/key heads, HV value heads, K and V head sizes,
W width of the short convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

FeatureMap = Literal["identity", "silu", "relu", "elu"]
Normalisation = Literal["none", "sum", "l2"]
Rule = Literal["sum", "delta", "gated_delta"]


@dataclass(frozen=True)
class MixerConfig:
    """Settings of the one fast-weight mixer. Models differ in rows of these, not in code."""

    heads: int  # H
    value_heads: int  # HV, a multiple of H; value head j uses query/key head j // (HV / H)
    key_dim: int  # K
    value_dim: int  # V
    rule: Rule
    feature_map: FeatureMap = "silu"  # of q and k; "elu" is elu(x) + 1. v always gets silu
    normalisation: Normalisation = "l2"  # of q and k, over K
    learned_beta: bool = True  # else beta is 1
    negative_eigenvalues: bool = False  # beta in (0, 2) instead of (0, 1)
    output_gate: bool = True
    conv_width: int = 4  # W; 0 is no short convolution


@dataclass(frozen=True)
class ModelConfig:
    """A stack of equal blocks, each a mixer and a SwiGLU MLP behind RMS norms."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    intermediate_size: int
    norm_eps: float
    tied: bool
    mixer: MixerConfig

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint, in file order."""
        d, inner, m = self.hidden_size, self.intermediate_size, self.mixer
        key_width, value_width = m.heads * m.key_dim, m.value_heads * m.value_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embeddings.weight": (self.vocab_size, d)}
        for i in range(self.num_layers):
            layer, attn = f"model.layers.{i}.", f"model.layers.{i}.attn."
            shapes[layer + "attn_norm.weight"] = (d,)
            shapes[attn + "q_proj.weight"] = (key_width, d)
            shapes[attn + "k_proj.weight"] = (key_width, d)
            shapes[attn + "v_proj.weight"] = (value_width, d)
            if m.output_gate:
                shapes[attn + "g_proj.weight"] = (value_width, d)
            if m.learned_beta:
                shapes[attn + "b_proj.weight"] = (m.value_heads, d)
            if m.rule == "gated_delta":
                shapes[attn + "a_proj.weight"] = (m.value_heads, d)
                shapes[attn + "A_log"] = (m.value_heads,)
                shapes[attn + "dt_bias"] = (m.value_heads,)
            if m.conv_width:
                shapes[attn + "q_conv1d.weight"] = (key_width, 1, m.conv_width)
                shapes[attn + "k_conv1d.weight"] = (key_width, 1, m.conv_width)
                shapes[attn + "v_conv1d.weight"] = (value_width, 1, m.conv_width)
            shapes[attn + "o_norm.weight"] = (m.value_dim,)
            shapes[attn + "o_proj.weight"] = (d, value_width)
            shapes[layer + "mlp_norm.weight"] = (d,)
            shapes[layer + "mlp.gate_proj.weight"] = (inner, d)
            shapes[layer + "mlp.up_proj.weight"] = (inner, d)
            shapes[layer + "mlp.down_proj.weight"] = (d, inner)
        shapes["model.norm.weight"] = (d,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, d)
        return shapes

    def parameter_count(self) -> int:
        """Numbers in the checkpoint; tied embeddings count once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())


def _inner_size(hf: dict[str, Any], hidden_size: int) -> int:
    """fla's rule: intermediate_size, or two thirds of hidden_ratio times D, rounded up to a multiple of 256."""
    if hf.get("intermediate_size") is not None:
        return int(hf["intermediate_size"])
    ratio = hf.get("hidden_ratio") or 4
    return 256 * math.ceil(int(hidden_size * ratio * 2 / 3) / 256)


def _delta_net_mixer(hf: dict[str, Any], hidden_size: int) -> MixerConfig:
    heads = hf.get("num_heads", 16)
    return MixerConfig(
        heads=heads,
        value_heads=heads,
        key_dim=int(hidden_size * hf.get("expand_k", 1.0)) // heads,
        value_dim=int(hidden_size * hf.get("expand_v", 1.0)) // heads,
        rule="delta",
        feature_map=hf.get("qk_activation", "silu"),
        normalisation=hf.get("qk_norm", "l2"),
        learned_beta=hf.get("use_beta", True),
        negative_eigenvalues=hf.get("allow_neg_eigval", False),
        output_gate=hf.get("use_gate", False),
        conv_width=hf.get("conv_size", 4) if hf.get("use_short_conv", True) else 0,
    )


def _gated_deltanet_mixer(hf: dict[str, Any], hidden_size: int) -> MixerConfig:
    del hidden_size  # the head sizes of this model do not depend on it
    heads, head_dim = hf.get("num_heads", 6), hf.get("head_dim", 256)
    return MixerConfig(
        heads=heads,
        value_heads=hf.get("num_v_heads") or heads,
        key_dim=head_dim,
        value_dim=int(head_dim * hf.get("expand_v", 2.0)),
        rule="gated_delta",
        negative_eigenvalues=hf.get("allow_neg_eigval", False),
        output_gate=hf.get("use_gate", True),
        conv_width=hf.get("conv_size", 4) if hf.get("use_short_conv", True) else 0,
    )


# model_type -> (how its keys become mixer settings, its default number of layers)
MODEL_TYPES = {"delta_net": (_delta_net_mixer, 24), "gated_deltanet": (_gated_deltanet_mixer, 21)}


def from_hf(hf: dict[str, Any]) -> ModelConfig:
    """Reads a config.json's contents; missing keys take fla's defaults. Raises ValueError on what we cannot run."""
    model_type = hf.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type {model_type!r} is not one of {sorted(MODEL_TYPES)}")
    for key in ("attn", "attnres_block_size"):
        if hf.get(key) is not None:
            raise ValueError(f"{key} is not supported: got {hf[key]!r}")
    if hf.get("hidden_act", "swish") != "swish":
        raise ValueError(f"hidden_act must be 'swish', got {hf['hidden_act']!r}")
    mixer_of, default_layers = MODEL_TYPES[model_type]
    hidden_size = hf.get("hidden_size", 2048)
    return ModelConfig(
        model_type=model_type,
        vocab_size=hf.get("vocab_size", 32000),
        hidden_size=hidden_size,
        num_layers=hf.get("num_hidden_layers", default_layers),
        intermediate_size=_inner_size(hf, hidden_size),
        norm_eps=hf.get("norm_eps", 1e-6),
        tied=hf.get("tie_word_embeddings", False),
        mixer=mixer_of(hf, hidden_size),
    )
