"""The maps from a head's query or key to features, as the server's op has them (kernels/feature_map/feature_map.h)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FAVOR_EPS = 1e-4


def features(x: Tensor, feature_map: str, *, rolls: int = 0, projection: Tensor | None = None) -> Tensor:
    """x [..., d] -> [..., E]. `projection` [m, d] is favor's."""
    match feature_map:
        case "identity":
            return x
        case "elu1":
            return F.elu(x) + 1
        case "dpfp":
            r = torch.cat((F.relu(x), F.relu(-x)), -1)
            return torch.cat([r * r.roll(i, -1) for i in range(1, rolls + 1)], -1)
        case "favor":
            assert projection is not None
            u, offset = x @ projection.t(), -0.5 * x.square().sum(-1, keepdim=True)
            both = torch.cat(((offset + u).exp(), (offset - u).exp()), -1)
            return (both + FAVOR_EPS) * both.shape[-1] ** -0.5
    raise ValueError(f"unknown feature map {feature_map!r}")


def draw_projection(dim: int, count: int) -> Tensor:
    """[count, dim]: rows orthogonal in groups of `dim`, each as long as a Gaussian vector."""
    groups = [torch.linalg.qr(torch.randn(dim, dim))[0] for _ in range(-(-count // dim))]
    lengths = torch.randn(count, dim).norm(dim=1, keepdim=True)
    return torch.cat(groups)[:count] * lengths
