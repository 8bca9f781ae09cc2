"""Checkpoints of flash-linear-attention (fla) as data: the defaults of config.json, the names and shapes of tensors.

A row per family and per tensor; needs nothing but Python. The library's version is 0.6.
Letters of shapes: D hidden size, I inner size of the MLP, R vocabulary, K and V head sizes, W width of the short
convolution, L rank of gla's gate; q, k, v, o widths of what is projected or goes out, b betas, g logits of kda's gate,
HV value heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Config = dict[str, Any]
Shape = tuple[int, ...]

CLASSES = {
    "delta_net": "DeltaNet",
    "gated_deltanet": "GatedDeltaNet",
    "gated_deltaproduct": "GatedDeltaProduct",
    "kda": "KDA",
    "gla": "GLA",
    "linear_attn": "LinearAttention",
}

# Where a file's config.json lacks a key, the library's classes take these.
SHARED: Config = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "hidden_act": "swish",
    "norm_eps": 1e-6,
    "hidden_ratio": 4,
    "intermediate_size": None,
    "tie_word_embeddings": False,
    "attn": None,
    "attnres_block_size": None,
    "fuse_norm": True,
}
_CONVOLVED: Config = {"use_short_conv": True, "conv_size": 4}
DEFAULTS: dict[str, Config] = {
    "delta_net": {
        **_CONVOLVED,
        "num_hidden_layers": 24,
        "num_heads": 16,
        "expand_k": 1.0,
        "expand_v": 1.0,
        "qk_norm": "l2",
        "qk_activation": "silu",
        "use_beta": True,
        "use_gate": False,
        "allow_neg_eigval": False,
    },
    "gated_deltanet": {
        **_CONVOLVED,
        "num_hidden_layers": 21,
        "num_heads": 6,
        "num_v_heads": None,
        "head_dim": 256,
        "expand_v": 2.0,
        "use_gate": True,
        "output_gate_activation": "swish",
        "allow_neg_eigval": False,
    },
    "gated_deltaproduct": {
        **_CONVOLVED,
        "num_hidden_layers": 21,
        "num_heads": 6,
        "head_dim": 256,
        "expand_v": 2.0,
        "use_output_gate": True,
        "use_forget_gate": False,
        "num_householder": 1,
        "allow_neg_eigval": False,
    },
    "kda": {
        **_CONVOLVED,
        "num_hidden_layers": 24,
        "num_heads": 16,
        "num_v_heads": None,
        "head_dim": 128,
        "expand_v": 1.0,
        "safe_gate": False,
        "lower_bound": None,
        "allow_neg_eigval": False,
    },
    "gla": {
        "num_hidden_layers": 24,
        "num_heads": 4,
        "num_kv_heads": None,
        "expand_k": 0.5,
        "expand_v": 1.0,
        "use_short_conv": False,
        "conv_size": 4,
        "use_output_gate": True,
        "feature_map": None,
        "clamp_min": None,
        "elementwise_affine": True,
    },
    "linear_attn": {
        "num_hidden_layers": 24,
        "num_heads": 4,
        "num_kv_heads": None,
        "expand_k": 1.0,
        "expand_v": 1.0,
        "feature_map": "elementwise_product",
        "tie_feature_map_qk": False,
        "norm_q": False,
        "norm_k": False,
        "norm_feature_map": False,
        "elementwise_affine": True,
    },
}
GLA_GATE_RANK = 16


def with_defaults(hf: Config) -> Config:
    """A config.json's contents with every key of its family, and none that only others have: its class ignores those.

    Raises ValueError on models that are of no family.
    """
    family = hf.get("model_type")
    if family not in DEFAULTS:
        raise ValueError(f"model_type {family!r} is not one of {sorted(DEFAULTS)}")
    ours = {**SHARED, **DEFAULTS[family]}
    foreign = {key for keys in DEFAULTS.values() for key in keys} - ours.keys()
    config = {**ours, **{key: value for key, value in hf.items() if key not in foreign}}
    for key in ("attn", "attnres_block_size"):
        if config[key] is not None:
            raise ValueError(f"{key} is not supported: got {config[key]!r}")
    if config["hidden_act"] != "swish":
        raise ValueError(f"hidden_act must be 'swish', got {config['hidden_act']!r}")
    return config


def inner_size(config: Config) -> int:
    """fla's rule: intermediate_size, or two thirds of hidden_ratio times D, rounded up to a multiple of 256."""
    if config["intermediate_size"] is not None:
        return int(config["intermediate_size"])
    return 256 * math.ceil(int(config["hidden_size"] * (config["hidden_ratio"] or 4) * 2 / 3) / 256)


def head_sizes(config: Config) -> tuple[int, int]:
    """K and V."""
    if "head_dim" in config:
        return config["head_dim"], int(config["head_dim"] * config["expand_v"])
    hidden, heads = config["hidden_size"], config["num_heads"]
    return round(hidden * config["expand_k"]) // heads, round(hidden * config["expand_v"]) // heads


def _sizes(config: Config) -> dict[str, int]:
    """What the letters stand for."""
    key_dim, value_dim = head_sizes(config)
    heads, writes = config["num_heads"], config.get("num_householder", 1)
    stored_heads = config.get("num_kv_heads") or heads  # of keys and values; the others repeat them
    value_heads = config.get("num_v_heads") or heads
    return {
        "D": config["hidden_size"],
        "I": inner_size(config),
        "R": config["vocab_size"],
        "K": key_dim,
        "V": value_dim,
        "W": config.get("conv_size", 0),
        "L": GLA_GATE_RANK,
        "1": 1,
        "HV": value_heads,
        "q": heads * key_dim,
        "k": writes * stored_heads * key_dim,
        "v": writes * (stored_heads if "num_kv_heads" in config else value_heads) * value_dim,
        "o": value_heads * value_dim,
        "b": writes * value_heads,
        "g": value_heads * key_dim,
    }


# A tensor: its name, the letters of its shape, and whether a config has it.
Row = tuple[str, str, Callable[[Config], bool]]


def _always(_: Config) -> bool:
    return True


def _if(*keys: str) -> Callable[[Config], bool]:
    return lambda config: all(config[key] for key in keys)


def _if_map(*maps: str) -> Callable[[Config], bool]:
    return lambda config: config["feature_map"] in maps


def _if_unfused(config: Config) -> bool:
    return config["elementwise_affine"] and not (config["fuse_norm"] and config["use_output_gate"])


def _feature_map(letter: str) -> tuple[Row, ...]:
    name = f"feature_map_{letter}"
    product, layer, bias = _if_map("elementwise_product"), _if_map("t2r", "hedgehog"), _if_map("hedgehog")
    return (
        (f"{name}.layer1.weight", "K K", product),
        (f"{name}.layer1.bias", "K", product),
        (f"{name}.layer2.weight", "K K", product),
        (f"{name}.layer2.bias", "K", product),
        (f"{name}.layer.weight", "K K", layer),
        (f"{name}.layer.bias", "K", bias),
    )


_PROJECTIONS: tuple[Row, ...] = (
    ("q_proj.weight", "q D", _always),
    ("k_proj.weight", "k D", _always),
    ("v_proj.weight", "v D", _always),
)
_CONVOLUTIONS: tuple[Row, ...] = (
    ("q_conv1d.weight", "q 1 W", _if("use_short_conv", "conv_size")),
    ("k_conv1d.weight", "k 1 W", _if("use_short_conv", "conv_size")),
    ("v_conv1d.weight", "v 1 W", _if("use_short_conv", "conv_size")),
)
_OUTPUT: tuple[Row, ...] = (("o_norm.weight", "V", _always), ("o_proj.weight", "D o", _always))


def _decay(where: Callable[[Config], bool]) -> tuple[Row, ...]:
    return (("a_proj.weight", "HV D", where), ("A_log", "HV", where), ("dt_bias", "HV", where))


# The mixer of a layer, in file order.
_MIXERS: dict[str, tuple[Row, ...]] = {
    "delta_net": (
        *_PROJECTIONS,
        ("g_proj.weight", "o D", _if("use_gate")),
        ("b_proj.weight", "b D", _if("use_beta")),
        *_CONVOLUTIONS,
        *_OUTPUT,
    ),
    "gated_deltanet": (
        *_PROJECTIONS,
        ("g_proj.weight", "o D", _if("use_gate")),
        ("b_proj.weight", "b D", _always),
        *_decay(_always),
        *_CONVOLUTIONS,
        *_OUTPUT,
    ),
    "gated_deltaproduct": (
        *_PROJECTIONS,
        ("g_proj.weight", "o D", _if("use_output_gate")),
        ("b_proj.weight", "b D", _always),
        *_decay(_if("use_forget_gate")),
        *_CONVOLUTIONS,
        *_OUTPUT,
    ),
    "kda": (
        *_PROJECTIONS,
        ("g_proj.0.weight", "V D", _always),
        ("g_proj.1.weight", "o V", _always),
        ("g_proj.1.bias", "o", _always),
        ("b_proj.weight", "b D", _always),
        ("f_proj.0.weight", "V D", _always),
        ("f_proj.1.weight", "g V", _always),
        ("A_log", "HV", _always),
        ("dt_bias", "g", _always),
        *_CONVOLUTIONS,
        *_OUTPUT,
    ),
    "gla": (
        *_PROJECTIONS,
        ("g_proj.weight", "o D", _if("use_output_gate")),
        ("gk_proj.0.weight", "L D", _always),
        ("gk_proj.1.weight", "k L", _always),
        ("gk_proj.1.bias", "k", _always),
        *_CONVOLUTIONS,
        ("g_norm_swish_gate.weight", "V", _if("elementwise_affine", "fuse_norm", "use_output_gate")),
        ("g_norm.weight", "V", _if_unfused),
        ("o_proj.weight", "D o", _always),
    ),
    "linear_attn": (
        *_PROJECTIONS,
        *_feature_map("q"),
        *_feature_map("k"),
        ("norm.weight", "V", _if("elementwise_affine")),
        ("o_proj.weight", "D o", _always),
    ),
}
_MLP: tuple[Row, ...] = (
    ("gate_proj.weight", "I D", _always),
    ("up_proj.weight", "I D", _always),
    ("down_proj.weight", "D I", _always),
)


def tensor_shapes(hf: Config) -> dict[str, Shape]:
    """Every tensor of a checkpoint with this config.json, in file order. Raises ValueError as with_defaults does."""
    config = with_defaults(hf)
    sizes = _sizes(config)
    layer: tuple[Row, ...] = (
        ("attn_norm.weight", "D", _always),
        *((f"attn.{name}", letters, where) for name, letters, where in _MIXERS[config["model_type"]]),
        ("mlp_norm.weight", "D", _always),
        *((f"mlp.{name}", letters, where) for name, letters, where in _MLP),
    )
    rows: tuple[Row, ...] = (
        ("model.embeddings.weight", "R D", _always),
        *(
            (f"model.layers.{number}.{name}", letters, where)
            for number in range(int(config["num_hidden_layers"]))
            for name, letters, where in layer
        ),
        ("model.norm.weight", "D", _always),
        ("lm_head.weight", "R D", lambda c: not c["tie_word_embeddings"]),
    )
    return {
        name: tuple(int(sizes[letter]) for letter in letters.split())  # a file may say 256.0
        for name, letters, where in rows
        if where(config)
    }


def parameter_count(hf: Config) -> int:
    """Numbers in such a checkpoint; tied embeddings count once."""
    return sum(math.prod(shape) for shape in tensor_shapes(hf).values())
