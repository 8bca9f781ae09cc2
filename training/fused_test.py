"""The fused passes against the plain code they stand in for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training import fused
from training.config import MixerConfig, ModelConfig
from training.mixer import Mixer, MixerState, rms_norm

pytestmark = pytest.mark.skipif(not fused.available(), reason="needs a C++ compiler and AVX-512")

SHIPPED = MixerConfig(heads=2, value_heads=2, key_dim=64, value_dim=64, rule="gated_delta")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def test_only_the_settings_it_was_written_for_are_supported() -> None:
    assert fused.supports(SHIPPED, 64)
    assert not fused.supports(SHIPPED, 65)
    for change in ({"value_heads": 4}, {"output_gate": False}, {"key_dim": 32}, {"conv_width": 3}, {"rule": "delta"}):
        assert not fused.supports(replace(SHIPPED, **change), 64)


@pytest.mark.parametrize("tokens", [32, 96])
def test_mixer_core(tokens: int) -> None:
    config = ModelConfig("test", 8, 32, 1, 32, 1e-6, True, SHIPPED)
    mixer = Mixer(config, chunk=32)
    generator = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    batch, width = 3, 4 * 2 * 64 + 2 * 2
    projected = torch.randn(batch, tokens, width, generator=generator).bfloat16()
    state = MixerState(
        torch.randn(batch, 2, 64, 64, generator=generator), torch.randn(batch, 3, 3 * 2 * 64, generator=generator)
    )
    d_out = torch.randn(batch, tokens, 2 * 64, generator=generator)

    def run(core: str) -> tuple[list[Tensor], dict[str, Tensor]]:
        mixer.zero_grad()
        x = projected.clone().requires_grad_()
        out, after = getattr(mixer, core)(x, state)
        out.backward(d_out.to(out.dtype))
        gradients = {name: p.grad for name, p in mixer.named_parameters() if p.grad is not None}
        return [out.detach(), after.fast_weights, after.conv_tail], {"projected": x.grad, **gradients}

    values, gradients = run("_fused_core")
    expected_values, expected_gradients = run("_core")
    for actual, expected in zip(values, expected_values, strict=True):
        assert relative_error(actual, expected) < 4e-3  # bfloat16 output
    assert relative_error(values[1], expected_values[1]) < 1e-5  # the state is float32
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        assert relative_error(gradients[name], expected) < 8e-3, name


def test_norm() -> None:
    x = (torch.randn(130, 48) * 3).requires_grad_()
    weight = torch.randn(48).requires_grad_()
    dy = torch.randn(130, 48).bfloat16()
    expected = rms_norm(x, weight, 1e-6)
    expected_gradients = torch.autograd.grad(expected, (x, weight), dy.float())
    actual = fused.rms_norm(x, weight, 1e-6)
    assert relative_error(actual, expected) < 4e-3
    for got, wanted in zip(torch.autograd.grad(actual, (x, weight), dy), expected_gradients, strict=True):
        assert relative_error(got, wanted) < 1e-5


def test_swiglu() -> None:
    x = torch.randn(70, 2, 96).bfloat16().requires_grad_()
    dy = torch.randn(70, 2, 48).bfloat16()
    gate, up = x.float().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    (expected_gradient,) = torch.autograd.grad(expected, x, dy.float())
    actual = fused.swiglu(x)
    assert relative_error(actual, expected) < 4e-3
    assert relative_error(torch.autograd.grad(actual, x, dy)[0], expected_gradient) < 4e-3


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_cross_entropy(scale: float) -> None:
    logits = (torch.randn(100, 61) * 4).bfloat16().requires_grad_()
    targets = torch.randint(0, 61, (100,))
    expected = torch.nn.functional.cross_entropy(logits.float(), targets) * scale
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    copy = logits.detach().clone().requires_grad_()
    actual = fused.cross_entropy(copy * 1, targets) * scale
    assert abs(actual.item() - expected.item()) < 1e-5
    assert relative_error(torch.autograd.grad(actual, copy)[0], expected_gradient) < 8e-3
