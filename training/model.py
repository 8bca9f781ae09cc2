"""The language model around the mixer. Parameter names are the tensor names of fla's Hugging Face checkpoints."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import fused
from training.config import ModelConfig
from training.mixer import Mixer, MixerState, ShortConv, rms_norm

State = list[MixerState]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor, fuse: bool = False) -> Tensor:
        """Fused, the result is bfloat16: it goes straight into a product."""
        return fused.rms_norm(x, self.weight, self.eps) if fuse else rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """The channel mixer: down(silu(gate x) * up x)."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor, matmul_dtype: torch.dtype, fuse: bool) -> Tensor:
        """x [B,T,D] -> y [B,T,D] in `matmul_dtype`."""
        weight = torch.cat((self.gate_proj.weight, self.up_proj.weight)).to(matmul_dtype)
        both = F.linear(x.to(matmul_dtype), weight)
        if fuse:
            inner = fused.swiglu(both)
        else:
            gate, up = both.to(self.down_proj.weight.dtype).chunk(2, -1)
            inner = (F.silu(gate) * up).to(matmul_dtype)
        return F.linear(inner, self.down_proj.weight.to(matmul_dtype))


class Block(nn.Module):
    """A token mixer and a channel mixer, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, chunk: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Mixer(config, chunk)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, state: MixerState, matmul_dtype: torch.dtype, fuse: bool) -> tuple[Tensor, MixerState]:
        """x [B,T,D] -> x [B,T,D] and the mixer's state after it."""
        y, state = self.attn(self.attn_norm(x, fuse), state, matmul_dtype, fuse)
        x = x + y
        return x + self.mlp(self.mlp_norm(x, fuse), matmul_dtype, fuse), state


class Backbone(nn.Module):
    """Everything but the head; named `model` in checkpoints."""

    def __init__(self, config: ModelConfig, chunk: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, chunk) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class LanguageModel(nn.Module):
    """`chunk` is the chunk length of the mixers, 0 for token by token. Large products run in `matmul_dtype` (None: the
    type of the parameters); the residual stream, the state and every sum with it stay in the type of the parameters.
    `fuse` runs the fused passes of fused.py; it needs float32 parameters and products in bfloat16."""

    def __init__(
        self, config: ModelConfig, *, chunk: int = 64, matmul_dtype: torch.dtype | None = None, fuse: bool = False
    ) -> None:
        super().__init__()
        if fuse and not (matmul_dtype == torch.bfloat16 and fused.available()):
            raise ValueError("fused passes need products in bfloat16, a C++ compiler and AVX-512")
        self.config, self.matmul_dtype, self.fuse = config, matmul_dtype, fuse
        self.model = Backbone(config, chunk)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def initial_state(self, batch: int) -> State:
        """The state before the first token, for `batch` sequences."""
        return [layer.attn.initial_state(batch) for layer in self.model.layers]

    def _hidden(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens [B,T] -> normalised last hidden [B,T,D] and the state after them."""
        dtype = self.matmul_dtype or self.model.norm.weight.dtype
        x = self.model.embeddings(tokens)
        new_state = []
        for layer, layer_state in zip(self.model.layers, state, strict=True):
            x, layer_state = layer(x, layer_state, dtype, self.fuse)
            new_state.append(layer_state)
        return self.model.norm(x, self.fuse), new_state

    def _head(self, hidden: Tensor) -> Tensor:
        weight = self.model.embeddings.weight if self.config.tied else self.lm_head.weight
        dtype = self.matmul_dtype or weight.dtype
        return F.linear(hidden.to(dtype), weight.to(dtype))

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens [B,T] -> logits [B,T,R] for the token after each, and the state after all of them."""
        hidden, state = self._hidden(tokens, state)
        return self._head(hidden).to(self.model.norm.weight.dtype), state

    def loss(self, tokens: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """Mean cross-entropy in nats of targets [B,T], and the state."""
        hidden, state = self._hidden(tokens, state)
        logits, targets = self._head(hidden).flatten(0, 1), targets.flatten()
        if self.fuse:
            return fused.cross_entropy(logits, targets.contiguous()), state
        return F.cross_entropy(logits.to(self.model.norm.weight.dtype), targets), state

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Random weights for training: fla's scheme, with the outputs of each block scaled down by depth."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = math.sqrt(3 / module.in_features) * 0.6
                module.weight.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, ShortConv):
                bound = module.weight.shape[-1] ** -0.5
                module.weight.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, Mixer) and module.config.rule == "gated_delta":
                module.A_log.uniform_(1, 16, generator=generator).log_()
                low, high = math.log(1e-3), math.log(1e-1)
                step = module.dt_bias.uniform_(low, high, generator=generator).exp()
                module.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        for block in self.model.layers:
            for weight in (block.attn.o_proj.weight, block.mlp.down_proj.weight):
                weight.mul_((2 * self.config.num_layers) ** -0.5)
