"""Writes golden models with flash-linear-attention's own classes: random checkpoints and what they must give.

    python -m training.fla_goldens --out work/fla-goldens
    python -m training.fla_goldens --out tests/golden_fla --committed
    python -m training.fla_goldens --out work/fla-goldens --kernels 128 --case kda_grouped_values

Configuration, modules, weights and files (save_pretrained, from_pretrained) are the library's. Its kernels want a
GPU; here its own plain PyTorch functions (naive_*) stand in for them and run in float64, on the weights as the files
hold them, so a CPU is enough. With --kernels nothing is written: the library's untouched Triton kernels run under
Triton's interpreter, in float32 and in calls of at most 64 tokens with a cache, and the largest difference from the
golden values is printed. tests/golden_fla/README.md has the format and the versions that were used.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from training import weights_file
from training.families import CLASSES

TOKENS = 512
ROWS = (0, 1, 63, 64, 200, 511)  # positions whose whole distribution is stored
PIECE = 64  # the library takes its recurrent kernels for calls of at most this many tokens
_LOGIT_SIZE = 2.5


@dataclass(frozen=True)
class Case:
    """One folder.

    File types: F32; BF16: model.to(bfloat16); MIXED: made by from_config(dtype=bfloat16), which keeps some tensors
    in float32. `gains` multiply the weights whose names contain the key.
    """

    name: str
    family: str
    dtype: str
    config: dict[str, Any] = field(repr=False)
    committed: bool = False
    gains: dict[str, float] = field(default_factory=dict, repr=False)
    shard_size: str | None = None


def _sizes(**keys: Any) -> dict[str, Any]:
    base = {
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
    }
    return {**base, **keys}


def _delta_net(name: str, dtype: str, keys: dict[str, Any], **more: Any) -> Case:
    return Case(f"delta_net_{name}", "delta_net", dtype, _sizes(**keys), **more)


def _gated_deltanet(name: str, dtype: str, keys: dict[str, Any], **more: Any) -> Case:
    return Case(f"gated_deltanet_{name}", "gated_deltanet", dtype, _sizes(**{"head_dim": 16, **keys}), **more)


def _deltaproduct(name: str, dtype: str, keys: dict[str, Any], **more: Any) -> Case:
    keys = {"head_dim": 12, "expand_v": 1.5, **keys}
    return Case(f"gated_deltaproduct_{name}", "gated_deltaproduct", dtype, _sizes(**keys), **more)


def _kda(name: str, dtype: str, keys: dict[str, Any], **more: Any) -> Case:
    return Case(f"kda_{name}", "kda", dtype, _sizes(**{"head_dim": 16, **keys}), **more)


def _gla(name: str, dtype: str, keys: dict[str, Any], **more: Any) -> Case:
    return Case(f"gla_{name}", "gla", dtype, _sizes(**{"hidden_size": 48, "num_heads": 4, **keys}), **more)


def _linear_attn(name: str, dtype: str, keys: dict[str, Any], **more: Any) -> Case:
    return Case(f"linear_attn_{name}", "linear_attn", dtype, _sizes(**{"num_heads": 4, **keys}), **more)


_TINY = {"q_conv1d": 1e-3, "k_conv1d": 1e-3}  # the square of a key's length is then about that of the eps beside it
_SEEN = {"norm_eps": 1e-2}  # the norm of the output hides a factor in it unless the eps is large
_UNFUSED = {"fuse_norm": False, "fuse_swiglu": False, "fuse_cross_entropy": False}

CASES = (
    _delta_net(
        "defaults", "BF16", {"hidden_size": 64, "num_heads": 4, "intermediate_size": None, "tie_word_embeddings": False}
    ),
    _delta_net(
        "gate_negative",
        "F32",
        {"hidden_size": 40, "expand_k": 0.6, "expand_v": 1.5, "use_gate": True, "allow_neg_eigval": True},
        committed=True,
    ),
    _delta_net("sum_elu", "BF16", {"qk_norm": "sum", "qk_activation": "elu", "vocab_size": 300}, committed=True),
    _delta_net("sum_relu_conv2", "F32", {"qk_norm": "sum", "qk_activation": "relu", "conv_size": 2}),
    _delta_net("sum_silu", "F32", {"qk_norm": "sum", "num_hidden_layers": 3}),
    _delta_net("sum_identity_no_conv", "F32", {"qk_norm": "sum", "qk_activation": "identity", "use_short_conv": False}),
    _delta_net("identity", "BF16", {"qk_activation": "identity", "expand_v": 2.0}),
    _delta_net("relu_no_conv_gate", "F32", {"qk_activation": "relu", "use_short_conv": False, "use_gate": True}),
    _delta_net("silu_no_conv", "BF16", {"use_short_conv": False, "expand_k": 2.0}),
    _delta_net("no_beta", "F32", {"use_beta": False, "qk_activation": "elu", **_UNFUSED}),
    _delta_net("no_beta_negative", "F32", {"use_beta": False, "allow_neg_eigval": True}),
    _delta_net("tiny_keys", "F32", {"norm_eps": 1e-3}, gains=_TINY, committed=True),
    _delta_net("conv1_mixed_types", "MIXED", {"conv_size": 1, "norm_eps": 1e-2}, committed=True),
    _delta_net("eleven_heads", "F32", {"hidden_size": 77, "num_heads": 11, "vocab_size": 263, "conv_size": 7}),
    _gated_deltanet("defaults", "BF16", {"hidden_size": 48, "tie_word_embeddings": False}),
    _gated_deltanet("sigmoid_gate", "F32", {"output_gate_activation": "sigmoid", "expand_v": 1.0}, committed=True),
    _gated_deltanet("silu_name", "BF16", {"output_gate_activation": "silu", "hidden_ratio": 2, **_UNFUSED}),
    _gated_deltanet("no_gate", "F32", {"use_gate": False, "conv_size": 3}),
    _gated_deltanet(
        "grouped_values",
        "BF16",
        {"head_dim": 12, "expand_v": 1.5, "num_v_heads": 6, "allow_neg_eigval": True, "hidden_size": 40},
        committed=True,
    ),
    _gated_deltanet("one_key_head", "F32", {"num_heads": 1, "num_v_heads": 4, "head_dim": 20, "expand_v": 0.5}),
    _gated_deltanet("negative_conv2", "F32", {"allow_neg_eigval": True, "conv_size": 2, "norm_eps": 1e-5}),
    _gated_deltanet("no_conv", "BF16", {"use_short_conv": False}),
    _gated_deltanet("no_conv_no_gate_grouped", "F32", {"use_short_conv": False, "use_gate": False, "num_v_heads": 4}),
    _gated_deltanet("mixed_types", "MIXED", {"use_gate": False, "norm_eps": 1e-3}, committed=True),
    _gated_deltanet("tiny_keys", "F32", {"norm_eps": 1e-2}, gains=_TINY),
    _gated_deltanet(
        "hidden_ratio", "F32", {"intermediate_size": None, "hidden_ratio": 2, "hidden_size": 96, "head_dim": 32}
    ),
    _gated_deltanet("sharded_untied", "BF16", {"tie_word_embeddings": False}, shard_size="40KB"),
    _deltaproduct("defaults", "BF16", {"head_dim": 16, "expand_v": 2.0}),
    _deltaproduct("two_steps", "BF16", {"num_householder": 2, "use_forget_gate": True}, committed=True),
    _deltaproduct(
        "three_steps_negative",
        "F32",
        {"num_householder": 3, "use_forget_gate": True, "allow_neg_eigval": True, "use_output_gate": False},
        committed=True,
    ),
    _deltaproduct(
        "two_steps_no_forget", "F32", {"num_householder": 2, "allow_neg_eigval": True, "conv_size": 2}, committed=True
    ),
    _deltaproduct(
        "three_steps_no_conv", "F32", {"num_householder": 3, "use_short_conv": False, "use_forget_gate": True}
    ),
    _deltaproduct("one_step_forget", "F32", {"use_forget_gate": True, "use_output_gate": False, **_UNFUSED}),
    _deltaproduct("one_step_negative", "F32", {"allow_neg_eigval": True, "num_heads": 3, "hidden_size": 45}),
    _deltaproduct(
        "four_steps_mixed_types", "MIXED", {"num_householder": 4, "use_forget_gate": True, "use_output_gate": False}
    ),
    _deltaproduct("two_steps_tiny_keys", "F32", {"num_householder": 2, "norm_eps": 1e-3}, gains=_TINY),
    _deltaproduct(  # a key that the model's class does not hand on: one value head for each key head all the same
        "ignored_value_heads", "F32", {"num_v_heads": 4, "num_householder": 2, "use_forget_gate": True}
    ),
    _kda("defaults", "BF16", {"hidden_size": 48, "tie_word_embeddings": False}),
    _kda("grouped_values", "F32", {"head_dim": 12, "expand_v": 1.5, "num_v_heads": 4}, committed=True),
    _kda("one_key_head_negative", "BF16", {"num_heads": 1, "num_v_heads": 3, "allow_neg_eigval": True}),
    _kda("lower_bound", "F32", {"lower_bound": -3.0, "expand_v": 0.5}, committed=True),
    _kda("safe_gate", "BF16", {"safe_gate": True, "lower_bound": -5.0}),
    _kda(
        "safe_gate_grouped_negative",
        "BF16",
        {"safe_gate": True, "lower_bound": -5.0, "num_v_heads": 4, "head_dim": 8, "allow_neg_eigval": True},
        committed=True,
    ),
    _kda("no_conv", "F32", {"use_short_conv": False, **_UNFUSED}),
    _kda("negative_conv2", "F32", {"allow_neg_eigval": True, "conv_size": 2, "norm_eps": 1e-2}),
    _kda("mixed_types", "MIXED", {"vocab_size": 300, "head_dim": 8, "num_heads": 3}, committed=True),
    _kda("tiny_keys_lower_bound", "F32", {"lower_bound": -1.0, "norm_eps": 1e-3}, gains=_TINY),
    _kda("sharded_untied", "F32", {"tie_word_embeddings": False, "num_hidden_layers": 3}, shard_size="80KB"),
    _gla("defaults", "BF16", {"hidden_size": 64, "tie_word_embeddings": False}),
    _gla("no_output_gate", "F32", {"use_output_gate": False, "expand_k": 1.0}),
    _gla("unfused_norm", "F32", {**_UNFUSED, "hidden_size": 40, "norm_eps": 1e-3}, committed=True),
    _gla("relu_clamped", "BF16", {"feature_map": "relu", "clamp_min": -0.04}, committed=True),
    _gla("silu_map", "F32", {"feature_map": "silu"}),
    _gla("swish_map", "F32", {"feature_map": "swish", "clamp_min": -0.02}),
    _gla("sigmoid_map", "F32", {"feature_map": "sigmoid"}),
    _gla("logsigmoid_map", "F32", {"feature_map": "logsigmoid"}),
    _gla("sqrelu_map", "F32", {"feature_map": "sqrelu"}),
    _gla("gelu_map", "F32", {"feature_map": "gelu"}),
    _gla("grouped_heads", "F32", {"num_kv_heads": 2}, committed=True),
    _gla("one_kv_head_conv", "BF16", {"num_kv_heads": 1, "use_short_conv": True, "conv_size": 3}, committed=True),
    _gla("conv_relu", "F32", {"use_short_conv": True, "feature_map": "relu", "expand_v": 2.0}),
    _gla("conv_silu", "F32", {"use_short_conv": True, "feature_map": "silu"}, committed=True),
    _gla("no_affine", "F32", {"elementwise_affine": False}),
    _gla("no_affine_unfused", "F32", {"elementwise_affine": False, **_UNFUSED, "use_output_gate": False}),
    _gla("mixed_types", "MIXED", {"use_output_gate": False, "use_gk": False, "use_gv": True}),
    _linear_attn("defaults", "BF16", {"tie_word_embeddings": False}, committed=True),
    _linear_attn("tied_product", "F32", {"tie_feature_map_qk": True}),
    _linear_attn("elu_norms", "F32", {"feature_map": "elu", "norm_q": True, "norm_k": True, **_SEEN}, committed=True),
    _linear_attn("elu_normalised", "BF16", {"feature_map": "elu", "norm_feature_map": True, **_SEEN}),
    _linear_attn("relu_norm_k", "F32", {"feature_map": "relu", "norm_k": True, "norm_eps": 1e-3}),
    _linear_attn("relu_normalised", "F32", {"feature_map": "relu", "norm_feature_map": True, "norm_q": True, **_SEEN}),
    _linear_attn("identity", "F32", {"feature_map": "identity", "expand_k": 2.0, "expand_v": 0.5, **_UNFUSED}),
    _linear_attn(
        "dpfp_normalised",
        "BF16",
        {"feature_map": "dpfp", "norm_feature_map": True, "expand_k": 0.5, "expand_v": 1.5, **_SEEN},
        committed=True,
    ),
    _linear_attn("dpfp_tied", "F32", {"feature_map": "dpfp", "tie_feature_map_qk": True, "norm_k": True}),
    _linear_attn("t2r", "F32", {"feature_map": "t2r", "norm_q": True, "norm_k": True, **_SEEN}),
    _linear_attn("t2r_tied", "F32", {"feature_map": "t2r", "tie_feature_map_qk": True}),
    _linear_attn("hedgehog_normalised", "F32", {"feature_map": "hedgehog", "norm_feature_map": True, **_SEEN}),
    _linear_attn(
        "hedgehog_tied_grouped",
        "BF16",
        {"feature_map": "hedgehog", "tie_feature_map_qk": True, "num_kv_heads": 2, "norm_feature_map": True, **_SEEN},
        committed=True,
    ),
    _linear_attn("grouped_heads", "F32", {"num_kv_heads": 1, "hidden_size": 44, "vocab_size": 271}),
    _linear_attn("no_affine", "F32", {"feature_map": "elu", "elementwise_affine": False}),
    _linear_attn(
        "mixed_types",
        "MIXED",
        {"feature_map": "elu", "norm_q": True, "norm_k": True, "norm_feature_map": True, **_SEEN},
    ),
)


def random_tensor(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of one tensor in float32: a pure function of the case's and the tensor's name, and the shape."""
    rng = np.random.default_rng((zlib.crc32(case.name.encode()), zlib.crc32(name.encode())))
    if name.endswith("A_log"):
        if case.config.get("lower_bound") is not None:  # a factor around 1 in front of what the sigmoid takes
            return rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
    if name.endswith("dt_bias"):
        step = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), shape))
        return (step + np.log(-np.expm1(-step))).astype(np.float32)  # the inverse of softplus
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith(".bias"):
        return values / 2
    if len(shape) == 1:  # norm weights
        return 1 + 0.1 * values
    gain = math.prod(value for key, value in case.gains.items() if key in name)
    if name.endswith(("embeddings.weight", "lm_head.weight")):
        return values * np.float32(_LOGIT_SIZE / math.sqrt(shape[-1]))
    return values * np.float32(gain / math.sqrt(math.prod(shape[1:])))  # fan-in; for a convolution that is its width


def write_checkpoint(case: Case, folder: Path) -> None:
    """The folder as save_pretrained writes it."""
    import fla.models
    import torch
    from transformers import AutoModelForCausalLM

    config = getattr(fla.models, CLASSES[case.family] + "Config")(**case.config)
    if case.dtype == "MIXED":
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        model = getattr(fla.models, CLASSES[case.family] + "ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random_tensor(case, name, tuple(parameter.shape))))
    if case.dtype == "BF16":
        model = model.to(torch.bfloat16)
    options: dict[str, Any] = {"max_shard_size": case.shard_size} if case.shard_size else {}
    if case.config.get("tie_feature_map_qk"):  # transformers refuses tensors that share memory: the file has two copies
        options["state_dict"] = {
            name: value.clone() if ".feature_map_k." in name else value for name, value in model.state_dict().items()
        }
    model.save_pretrained(folder, **options)


def _double_mode() -> contextlib.AbstractContextManager[Any]:
    """Where code asks PyTorch for float32, it gets float64: the library's plain functions compute in float32."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Double(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.float:
                func = torch.Tensor.double
            args = [torch.float64 if arg is torch.float32 else arg for arg in args]
            kwargs = {key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()}
            return func(*args, **kwargs)

    return Double()


def _plain_operations() -> dict[str, Callable[..., Any]]:
    """What stands in for the kernels, by the name under which modules of the library hold the function.

    Recurrences and gates are the library's plain functions. Written out here is what it has only as kernels: the l2
    norm of queries and keys, the convolution, the gate's product.
    """
    import torch
    import torch.nn.functional as F
    from fla.modules.norm.layernorm import rms_norm_ref
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
    from fla.ops.gated_delta_rule.gate import naive_gdn_gate
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
    from fla.ops.kda.naive import naive_recurrent_kda
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn

    def l2(x: Any) -> Any:
        return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)

    def expect(arguments: dict[str, Any], **known: Any) -> None:
        """Settings that change the function must be ones that the stand-in knows of."""
        for key, value in arguments.items():
            if key not in known:
                raise TypeError(f"unknown argument {key}")
            allowed = known[key] if isinstance(known[key], tuple) else (known[key],)
            if not any(value is item for item in allowed):
                raise ValueError(f"{key} is {value}")

    common = {"initial_state": None, "output_final_state": False, "cu_seqlens": None}
    gate_inside = {
        **common,
        "use_qk_l2norm_in_kernel": True,
        "use_gate_in_kernel": True,
        "use_beta_sigmoid_in_kernel": True,
        "state_v_first": True,
    }

    def delta_rule(q: Any, k: Any, v: Any, beta: Any, use_qk_l2norm_in_kernel: bool, **rest: Any) -> Any:
        expect(rest, **common)
        if use_qk_l2norm_in_kernel:
            q, k = l2(q), l2(k)
        o, _ = delta_rule_recurrence(*(x.transpose(1, 2) for x in (q, k, v, beta)), output_final_state=False)
        return o.transpose(1, 2), None

    def gated_delta_rule(
        q: Any, k: Any, v: Any, g: Any, beta: Any, A_log: Any, dt_bias: Any, allow_neg_eigval: bool, **rest: Any
    ) -> Any:
        expect(rest, **gate_inside)
        groups = v.shape[2] // q.shape[2]
        q, k = (l2(x).repeat_interleave(groups, dim=2) for x in (q, k))
        beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
        return naive_recurrent_gated_delta_rule(q, k, v, beta, naive_gdn_gate(g, A_log, dt_bias))

    def gated_delta_product(
        q: Any, k: Any, v: Any, g: Any, beta: Any, num_householder: int, use_qk_l2norm_in_kernel: bool, **rest: Any
    ) -> Any:
        expect(rest, **common)
        assert use_qk_l2norm_in_kernel
        scale = q.shape[-1] ** -0.5
        return naive_recurrent_gated_delta_product(l2(q), l2(k), v, g, beta, scale, num_householder=num_householder)

    def kda(
        q: Any,
        k: Any,
        v: Any,
        g: Any,
        beta: Any,
        A_log: Any,
        dt_bias: Any,
        lower_bound: float | None,
        allow_neg_eigval: bool,
        **rest: Any,
    ) -> Any:
        expect(rest, **gate_inside, safe_gate=(True, False))  # safe_gate: how to compute, not what
        if lower_bound is None:
            g = naive_kda_gate(g, A_log, dt_bias)
        else:
            g = naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound)
        beta = beta.sigmoid() * (2 if allow_neg_eigval else 1)
        return naive_recurrent_kda(l2(q), l2(k), v, g, beta)

    def gla(q: Any, k: Any, v: Any, g: Any, **rest: Any) -> Any:
        expect(rest, **common, state_v_first=True)
        return naive_recurrent_gla(q, k, v, g)

    def linear_attn(q: Any, k: Any, v: Any, normalize: bool, **rest: Any) -> Any:
        expect(rest, **common)
        return naive_recurrent_linear_attn(q, k, v, normalize=normalize)

    def convolution(x: Any, weight: Any, bias: Any, activation: str | None) -> Any:
        width = weight.shape[-1]
        y = F.conv1d(F.pad(x.transpose(1, 2), (width - 1, 0)), weight[:, None], bias, groups=len(weight))
        return (F.silu(y) if activation else y).transpose(1, 2)

    def short_convolution(self: Any, x: Any, **rest: Any) -> Any:
        expect(rest, cache=None, output_final_state=False, cu_seqlens=None)
        return convolution(x, self.weight[:, 0], self.bias, self.activation), None

    def rms_norm(self: Any, x: Any, residual: Any = None, prenorm: bool = False, **rest: Any) -> Any:
        expect(rest)
        weight = 1.0 if self.weight is None else self.weight
        return rms_norm_ref(x, weight, self.bias, residual=residual, eps=self.eps, prenorm=prenorm)

    def gated_rms_norm(self: Any, x: Any, g: Any, **rest: Any) -> Any:
        expect(rest)
        return rms_norm(self, x) * (torch.sigmoid(g) if self.activation == "sigmoid" else F.silu(g))

    return {
        "fla.layers.delta_net.chunk_delta_rule": delta_rule,
        "fla.layers.gated_deltanet.chunk_gated_delta_rule": gated_delta_rule,
        "fla.layers.gated_deltanet.causal_conv1d": (
            lambda x, weight, bias, activation, backend: (convolution(x, weight, bias, activation), None)
        ),
        "fla.layers.gated_deltaproduct.chunk_gated_delta_product": gated_delta_product,
        "fla.layers.kda.chunk_kda": kda,
        "fla.layers.gla.chunk_gla": gla,
        "fla.layers.linear_attn.fused_chunk_linear_attn": linear_attn,
        "fla.modules.ShortConvolution.forward": short_convolution,
        "fla.modules.RMSNorm.forward": rms_norm,
        "fla.modules.FusedRMSNormGated.forward": gated_rms_norm,
        "fla.modules.mlp.swiglu": lambda x, y: F.silu(x) * y,
        "fla.modules.mlp.swiglu_linear": lambda x, y, weight, bias: F.linear(F.silu(x) * y, weight, bias),
    }


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """While this lasts, the library's models run on a CPU and in float64."""
    import torch
    import torch.nn.functional as F
    from fla.modules.activations import ACT2FN

    activations = {
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "logsigmoid": F.logsigmoid,
        "silu": F.silu,
        "swish": F.silu,
        "sqrelu": lambda x: F.relu(x).square(),
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
    }
    with contextlib.ExitStack() as stack:
        for target, function in _plain_operations().items():
            stack.enter_context(mock.patch(target, function))
        stack.enter_context(mock.patch.dict(ACT2FN, activations))
        yield


def _load(folder: Path) -> Any:
    """The model of `folder` in float32, every weight as the file holds it."""
    import torch
    from transformers import AutoModelForCausalLM

    importlib.import_module("fla.models")  # registers the classes
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = dict(model.named_parameters(remove_duplicate=False))
    for path in folder.glob("model*.safetensors"):
        for name, values in weights_file.read(path).items():
            if not np.array_equal(loaded[name].detach().numpy(), values):
                raise ValueError(f"{folder.name}: {name} is not what the file holds")
    return model


def expected_log_probabilities(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float64 [T, R]: the distribution after each of `tokens`, without a bos in front."""
    import torch

    with _plain(), torch.no_grad():
        model = _load(folder).double()
        with _double_mode():
            logits = model(torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False).logits[0]
        assert logits.dtype == torch.float64
        return torch.log_softmax(logits, -1).numpy()


def kernel_log_probabilities(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """The same from the library's Triton kernels, interpreted, in float32 [T, R]."""
    import torch

    model, cache, logits = _load(folder), None, []
    with torch.no_grad():
        for at in range(0, len(tokens), PIECE):
            piece = torch.from_numpy(tokens[at : at + PIECE].astype(np.int64))[None]
            result = model(piece, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            logits.append(result.logits[0])
    return torch.log_softmax(torch.cat(logits).double(), -1).numpy()


def _interpret_kernels() -> None:
    """Before the library is imported: kernels run in Triton's interpreter, with the first configuration that fits."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs
    Autotuner.prune_configs = lambda self, keys: prune(self, keys)[:1]  # one is left: nothing to time


def write_case(case: Case, folder: Path) -> str:
    """Writes the checkpoint, then what it must give; says how large its logits are and how much the state matters."""
    shutil.rmtree(folder, ignore_errors=True)
    write_checkpoint(case, folder)
    vocab = case.config["vocab_size"]
    tokens = np.random.default_rng(zlib.crc32(case.name.encode())).integers(0, vocab, TOKENS).astype(np.int32)
    log_probs = expected_log_probabilities(folder, tokens)
    golden = {
        "tokens": weights_file.entry(tokens, "I32"),
        "next_logprob": weights_file.entry(log_probs[np.arange(TOKENS - 1), tokens[1:]], "F32"),
        "rows": weights_file.entry(np.array(ROWS, dtype=np.int32), "I32"),
        "row_logprobs": weights_file.entry(log_probs[list(ROWS)], "F32"),
    }
    weights_file.write(folder / "golden.safetensors", golden)
    other = np.concatenate([(tokens[:-8] + 1) % vocab, tokens[-8:]])  # another past, but for the last 8 tokens
    moved = np.abs(expected_log_probabilities(folder, other)[-1] - log_probs[-1]).max()
    spread = log_probs.std(-1).mean()
    size = sum(path.stat().st_size for path in folder.iterdir())
    if not np.isfinite(log_probs).all() or not 1.5 < spread < 5 or moved < 0.3:
        raise ValueError(f"{case.name}: a poor golden: logits of {spread:.2f}, another past moves them by {moved:.2f}")
    return f"{size:7d} bytes, logits of {spread:.2f}, another past moves them by {moved:.2f}"


def check_kernels(folder: Path, count: int) -> str:
    """Runs the kernels over the first `count` tokens of the golden in `folder`; tells the largest difference."""
    golden = weights_file.read(folder / "golden.safetensors")
    tokens = golden["tokens"][:count]
    log_probs = kernel_log_probabilities(folder, tokens)
    following = min(count, len(golden["next_logprob"]))
    found = log_probs[np.arange(following), golden["tokens"][1 : following + 1]]
    worst = np.abs(found - golden["next_logprob"][:following]).max()
    for row, expected in zip(golden["rows"], golden["row_logprobs"], strict=True):
        if row < count:
            worst = max(worst, np.abs(log_probs[row] - expected).max())
    return f"kernels differ by {worst:.1e} over {count} tokens"


def main() -> None:
    """The command line."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder with one folder per case")
    parser.add_argument("--case", action="append", choices=names, metavar="NAME", help="only this case")
    parser.add_argument("--committed", action="store_true", help="only the cases of tests/golden_fla")
    parser.add_argument("--list", action="store_true", help="names the cases and their settings, writes nothing")
    parser.add_argument("--kernels", type=int, metavar="N", help="check the kernels over the first N tokens instead")
    args = parser.parse_args()
    cases = [case for case in CASES if (not args.case or case.name in args.case)]
    if args.committed:
        cases = [case for case in cases if case.committed]
    if args.list:
        for case in cases:
            print(case.name, case.dtype, *(f"{key}={value}" for key, value in case.config.items()))
        return
    if args.out is None:
        parser.error("--out is required")
    if args.kernels:
        _interpret_kernels()
    warnings.filterwarnings("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for case in cases:
        folder = args.out / case.name
        print(case.name, check_kernels(folder, args.kernels) if args.kernels else write_case(case, folder))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
