"""The fast-weight mixer: one layer with settings, in a recurrent and in a chunked form that compute the same function.

Per value head the state S is [V, K]. For each token, in this order: decay, retrieve, write, read:

    S <- alpha S,   u = beta (v - S k)  (delta rules)  or  u = beta v  (sum rule),   S <- S + u k^T,   o = S q

Letters: B batch, T tokens, H query/key heads, HV value heads, K and V head sizes, C chunk length, N chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import fused
from training.config import MixerConfig, ModelConfig

L2_EPS = 1e-6


class MixerState(NamedTuple):
    """What one layer remembers. Plain values: a call returns a new one and leaves its argument alone."""

    fast_weights: Tensor  # [B, HV, V, K]
    conv_tail: Tensor  # [B, W-1, channels of q, k and v]: the last raw inputs of the short convolution, oldest first

    def detach(self) -> MixerState:
        """The same values, cut off from the gradient."""
        return MixerState(self.fast_weights.detach(), self.conv_tail.detach())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def recurrent_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, *, delta: bool
) -> tuple[Tensor, Tensor]:
    """The definition, one token after another.

    q, k [B,T,HV,K], v [B,T,HV,V], beta and log_decay [B,T,HV], state [B,HV,V,K]. Returns o [B,T,HV,V] and the state.
    """
    outputs = []
    for t in range(q.shape[1]):
        if log_decay is not None:
            state = state * log_decay[:, t].exp()[..., None, None]
        value = v[:, t]
        if delta:
            value = value - (state @ k[:, t, :, :, None]).squeeze(-1)
        update = beta[:, t, :, None] * value
        state = state + update[..., :, None] * k[:, t, :, None, :]
        outputs.append((state @ q[:, t, :, :, None]).squeeze(-1))
    return torch.stack(outputs, 1), state


class _UnitLowerInverse(torch.autograd.Function):
    """(I + L)^-1 for strictly lower triangular L [..., C, C], by substitution: powers of L would explode."""

    @staticmethod
    def forward(ctx, lower: Tensor) -> Tensor:  # type: ignore[override]
        eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand(lower.shape)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        return -(transposed @ grad @ transposed)


def chunked_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    delta: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The same function as `recurrent_rule`, C tokens at a time (WY form).

    Inside a chunk that is entered with state S, all corrected values at once are U~ = U - Wk S^T with
    U = X diag(beta) V, Wk = X diag(beta e^G) K, X = (I + L)^-1, L_ij = beta_i (k_i . k_j) e^{G_i - G_j} for i > j,
    where G is the running sum of the log-decay. Only two products per chunk run one chunk after another.
    """
    tokens = q.shape[1]
    pad = -tokens % chunk
    if pad:  # zero k, v and beta write nothing, zero log-decay forgets nothing
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, pad)) for x in (q, k, v))
        beta = F.pad(beta, (0, 0, 0, pad))
        log_decay = None if log_decay is None else F.pad(log_decay, (0, 0, 0, pad))

    def split(x: Tensor) -> Tensor:  # [B, N*C, HV, ...] -> [B, HV, N, C, ...]
        return x.unflatten(1, (-1, chunk)).movedim(3, 1)

    q, k, v, beta = split(q), split(k), split(v), split(beta)[..., None]
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(-1, -2)
    beta_k, beta_v = beta * k, beta * v
    q_in, k_in, k_out = q, beta_k, k  # q and k as the entering state sees them, k as the leaving state does
    overlap = (beta_k @ k.transpose(-1, -2)).tril(-1) if delta else None
    chunk_decay = None
    if log_decay is not None:
        total = split(log_decay).cumsum(-1)  # G [B, HV, N, C]
        # Subtract and mask before exp: e^{-G_j} alone overflows, and inf * 0 would follow.
        difference = (total[..., :, None] - total[..., None, :]).masked_fill(~causal, 0.0)
        decay = difference.exp()
        scores = scores * decay
        overlap = None if overlap is None else overlap * decay
        from_start = total.exp()[..., None]
        q_in, k_in = q * from_start, beta_k * from_start
        k_out = k * (total[..., -1:] - total).exp()[..., None]
        chunk_decay = from_start[..., -1:, :]  # [B, HV, N, 1, 1]
    scores = scores.tril()
    if overlap is not None:
        inverse = _UnitLowerInverse.apply(overlap)
        values, state_keys = inverse @ beta_v, inverse @ k_in

    writes, reads = [], []
    state_t = state.transpose(-1, -2)  # [B, HV, K, V]
    k_out_t = k_out.transpose(-1, -2)
    for n in range(q.shape[2]):
        if overlap is not None:
            from_state = torch.cat((state_keys[:, :, n], q_in[:, :, n]), 2) @ state_t
            write = values[:, :, n] - from_state[:, :, :chunk]
            reads.append(from_state[:, :, chunk:])
        else:
            write = beta_v[:, :, n]
            reads.append(q_in[:, :, n] @ state_t)
        writes.append(write)
        if chunk_decay is not None:
            state_t = state_t * chunk_decay[:, :, n]
        state_t = state_t + k_out_t[:, :, n] @ write
    out = torch.stack(reads, 2) + scores @ torch.stack(writes, 2)  # [B, HV, N, C, V]
    return out.movedim(1, 3).flatten(1, 2)[:, :tokens], state_t.transpose(-1, -2)


class ShortConv(nn.Module):
    """Holds the weight [channels, 1, W] of one depthwise causal convolution; the mixer applies q, k and v's at once."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))


def causal_conv(x: Tensor, weight: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """x [B,T,ch], weight [ch,1,W], tail [B,W-1,ch] -> y [B,T,ch] and the new tail. weight[..., W-1] meets x_t."""
    tokens, width = x.shape[1], weight.shape[-1]
    padded = torch.cat((tail, x), 1)
    y = sum(padded[:, j : j + tokens] * weight[:, 0, j] for j in range(width))
    return y, padded[:, tokens:]


def _activate(x: Tensor, config: MixerConfig) -> Tensor:
    match config.feature_map:
        case "identity":
            return x
        case "silu":
            return F.silu(x)
        case "relu":
            return F.relu(x)
        case "elu":
            return F.elu(x) + 1
    raise ValueError(f"unknown feature map {config.feature_map!r}")


def _normalise(x: Tensor, config: MixerConfig) -> Tensor:
    match config.normalisation:
        case "none":
            return x
        case "sum":
            return F.normalize(x, p=1, dim=-1, eps=1e-6)
        case "l2":
            return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)
    raise ValueError(f"unknown normalisation {config.normalisation!r}")


class Mixer(nn.Module):
    """Token mixer of every model here. `chunk` is the chunk length, 0 for the recurrent form."""

    def __init__(self, model: ModelConfig, chunk: int) -> None:
        super().__init__()
        self.config, self.eps, self.chunk = model.mixer, model.norm_eps, chunk
        c, d = self.config, model.hidden_size
        key_width, value_width = c.heads * c.key_dim, c.value_heads * c.value_dim
        self.widths = [key_width, key_width, value_width]
        self.q_proj = nn.Linear(d, key_width, bias=False)
        self.k_proj = nn.Linear(d, key_width, bias=False)
        self.v_proj = nn.Linear(d, value_width, bias=False)
        if c.output_gate:
            self.g_proj = nn.Linear(d, value_width, bias=False)
        if c.learned_beta:
            self.b_proj = nn.Linear(d, c.value_heads, bias=False)
        if c.rule == "gated_delta":
            self.a_proj = nn.Linear(d, c.value_heads, bias=False)
            self.A_log = nn.Parameter(torch.empty(c.value_heads))
            self.dt_bias = nn.Parameter(torch.empty(c.value_heads))
        if c.conv_width:
            self.q_conv1d = ShortConv(key_width, c.conv_width)
            self.k_conv1d = ShortConv(key_width, c.conv_width)
            self.v_conv1d = ShortConv(value_width, c.conv_width)
        self.o_norm = nn.Module()
        self.o_norm.weight = nn.Parameter(torch.ones(c.value_dim))
        self.o_proj = nn.Linear(value_width, d, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """What the layer remembers before the first token."""
        c, like = self.config, self.o_proj.weight
        return MixerState(
            like.new_zeros(batch, c.value_heads, c.value_dim, c.key_dim),
            like.new_zeros(batch, max(c.conv_width - 1, 0), sum(self.widths)),
        )

    def forward(
        self, h: Tensor, state: MixerState, matmul_dtype: torch.dtype, fuse: bool = False
    ) -> tuple[Tensor, MixerState]:
        """h [B,T,D] -> y [B,T,D] in `matmul_dtype`. Between the projections everything is in the type of the state.
        `fuse` allows the fused pass where it fits; its gradients stop at the entering state."""
        layers = [self.q_proj, self.k_proj, self.v_proj]
        layers += [getattr(self, name) for name in ("g_proj", "b_proj", "a_proj") if hasattr(self, name)]
        weight = torch.cat([layer.weight for layer in layers]).to(matmul_dtype)
        projected = F.linear(h.to(matmul_dtype), weight)
        core = self._fused_core if fuse and fused.supports(self.config, h.shape[1]) else self._core
        out, state = core(projected, state)
        return F.linear(out.to(matmul_dtype), self.o_proj.weight.to(matmul_dtype)), state

    def _conv_weight(self) -> Tensor:
        return torch.cat([self.q_conv1d.weight, self.k_conv1d.weight, self.v_conv1d.weight])

    def _fused_core(self, projected: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        out, fast = fused.mixer_core(
            projected,
            self._conv_weight(),
            self.A_log,
            self.dt_bias,
            self.o_norm.weight,
            state.conv_tail,
            state.fast_weights,
            self.eps,
        )
        tail = projected.detach()[:, 1 - self.config.conv_width :, : sum(self.widths)]
        return out, MixerState(fast, tail.to(state.conv_tail.dtype))

    def _core(self, projected: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """From the projections [B,T,...] of q, k, v, gate, beta and decay to the gated outputs [B,T,HV*V]."""
        c, projected = self.config, projected.to(state.fast_weights.dtype)
        qkv, rest = projected[..., : sum(self.widths)], projected[..., sum(self.widths) :]
        gate, rest = (rest[..., : self.widths[2]], rest[..., self.widths[2] :]) if c.output_gate else (None, rest)
        tail = state.conv_tail
        if c.conv_width:
            qkv, tail = causal_conv(qkv, self._conv_weight(), tail)
        q, k, v = qkv.split(self.widths, -1)
        q = _normalise(_activate(q, c).unflatten(-1, (c.heads, c.key_dim)), c) * c.key_dim**-0.5
        k = _normalise(_activate(k, c).unflatten(-1, (c.heads, c.key_dim)), c)
        v = F.silu(v).unflatten(-1, (c.value_heads, c.value_dim))
        if c.value_heads != c.heads:
            q, k = (x.repeat_interleave(c.value_heads // c.heads, 2) for x in (q, k))

        beta = rest[..., : c.value_heads].sigmoid() if c.learned_beta else torch.ones_like(v[..., 0])
        if c.negative_eigenvalues:
            beta = beta * 2
        log_decay = None
        if c.rule == "gated_delta":
            log_decay = -self.A_log.exp() * F.softplus(rest[..., -c.value_heads :] + self.dt_bias)

        delta = c.rule != "sum"
        if self.chunk:
            out, fast = chunked_rule(q, k, v, beta, log_decay, state.fast_weights, delta=delta, chunk=self.chunk)
        else:
            out, fast = recurrent_rule(q, k, v, beta, log_decay, state.fast_weights, delta=delta)
        out = rms_norm(out, self.o_norm.weight, self.eps).flatten(-2)
        if gate is not None:
            out = out * F.silu(gate)
        return out, MixerState(fast, tail)
