"""Fused CPU passes for training in bfloat16: an optional fast home for what mixer.py and model.py say plainly.

The C++ beside this file is compiled at first use. `available()` is false where that is impossible (no compiler, or no
AVX-512), and callers then use the plain code. fused_test.py holds the two together.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from training.config import MixerConfig

_FLAGS = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-std=c++20", "-mprefer-vector-width=512"]


@functools.cache
def _extension() -> ModuleType | None:
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return None
    from torch.utils import cpp_extension

    source = Path(__file__).with_suffix(".cpp")
    try:
        return cpp_extension.load("palimpsest_training_fused", [str(source)], extra_cflags=_FLAGS)
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def available() -> bool:
    """Whether the fused passes can run on this machine."""
    return _extension() is not None


def supports(config: MixerConfig, tokens: int) -> bool:
    """Whether the mixer core was written for these settings."""
    plain_gated_delta = MixerConfig(config.heads, config.heads, config.key_dim, config.value_dim, rule="gated_delta")
    return config == plain_gated_delta and _extension().supported(
        config.key_dim, config.value_dim, config.conv_width, tokens
    )


class _Core(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected, conv, a_log, dt_bias, norm, tail, state, eps: float):  # type: ignore[override]
        out, leaving, entering = _extension().core_forward(projected, conv, a_log, dt_bias, norm, tail, state, eps)
        ctx.save_for_backward(projected, conv, a_log, dt_bias, norm, tail, entering)
        ctx.eps = eps
        ctx.mark_non_differentiable(leaving)
        return out, leaving

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, _: Tensor):  # type: ignore[override]
        d_projected, d_conv, d_a_log, d_dt_bias, d_norm = _extension().core_backward(
            d_out.contiguous(), *ctx.saved_tensors, ctx.eps
        )
        d_conv = d_conv.sum(0)[:, None]
        return d_projected, d_conv, d_a_log.sum(0), d_dt_bias.sum(0), d_norm.sum((0, 1)), None, None, None


def mixer_core(
    projected: Tensor,
    conv: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    norm: Tensor,
    tail: Tensor,
    state: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Everything between the projections and the output projection of a gated DeltaNet layer.

    projected bfloat16 [B,T,4HK+2H] (q, k, v, gate, b, a), conv [3HK,1,W], tail [B,W-1,3HK], state [B,H,V,K]. Returns
    out bfloat16 [B,T,HV] and the state after. Gradients stop at the segment: neither state carries any.
    """
    entering = state.detach().transpose(-1, -2).contiguous()
    out, leaving = _Core.apply(projected, conv, a_log, dt_bias, norm, tail.detach().contiguous(), entering, eps)
    return out, leaving.transpose(-1, -2)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _extension().norm_forward(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        dx, d_weight = _extension().norm_backward(dy.contiguous(), *ctx.saved_tensors, ctx.eps)
        return dx, d_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """float32 [...,D] -> bfloat16."""
    return _Norm.apply(x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return _extension().swiglu_forward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return _extension().swiglu_backward(dy.contiguous(), *ctx.saved_tensors)


def swiglu(x: Tensor) -> Tensor:
    """bfloat16 [...,2I], gate then up -> silu(gate) * up [...,I]."""
    return _Swiglu.apply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        gradient = logits.detach()  # overwritten: nobody else reads the logits
        loss = _extension().cross_entropy_in_place(gradient, targets)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor):  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient if d_loss == 1 else gradient * d_loss, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows in nats of bfloat16 logits [N,R], which are destroyed; targets int64 [N]."""
    return _CrossEntropy.apply(logits, targets)
