"""What a fast-weight model to train is, as data: one mixer with settings, and the configs that select them.

Nothing here needs PyTorch. families.py has the keys of the configs and the names of tensors.
Letters: H query/key heads, HV value heads, K and V head sizes, W width of the short convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from training import families

FeatureMap = Literal["identity", "silu", "relu", "elu"]
Normalisation = Literal["none", "sum", "l2"]
Rule = Literal["sum", "delta", "gated_delta"]

RULES: dict[str, Rule] = {
    "delta_net": "delta",
    "gated_deltanet": "gated_delta",
}  # of the families that are trained here


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


def _mixer(config: dict[str, Any]) -> MixerConfig:
    """The settings that a config with all its keys selects."""
    key_dim, value_dim = families.head_sizes(config)
    return MixerConfig(
        heads=config["num_heads"],
        value_heads=config.get("num_v_heads") or config["num_heads"],
        key_dim=key_dim,
        value_dim=value_dim,
        rule=RULES[config["model_type"]],
        feature_map=config.get("qk_activation", "silu"),
        normalisation=config.get("qk_norm", "l2"),
        learned_beta=config.get("use_beta", True),
        negative_eigenvalues=config["allow_neg_eigval"],
        output_gate=config["use_gate"],
        conv_width=config["conv_size"] if config["use_short_conv"] else 0,
    )


def from_hf(hf: dict[str, Any]) -> ModelConfig:
    """Reads a config.json's contents; missing keys take fla's defaults. Raises ValueError on what we cannot train."""
    config = families.with_defaults(hf)
    if config["model_type"] not in RULES:
        raise ValueError(f"model_type {config['model_type']!r} cannot be trained here, only {sorted(RULES)}")
    return ModelConfig(
        model_type=config["model_type"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        intermediate_size=families.inner_size(config),
        norm_eps=config["norm_eps"],
        tied=config["tie_word_embeddings"],
        mixer=_mixer(config),
    )
