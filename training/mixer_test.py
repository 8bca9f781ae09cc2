"""The laws of the mixer: both forms agree, any split of the input reaches the same state, gradients are those of the
definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training.config import MixerConfig, ModelConfig
from training.mixer import chunked_rule, recurrent_rule
from training.model import LanguageModel

BASE = MixerConfig(heads=2, value_heads=2, key_dim=8, value_dim=12, rule="delta")
MIXERS = {  # each row changes one thing
    "delta": BASE,
    "gated_delta": replace(BASE, rule="gated_delta"),
    "sum_rule": replace(BASE, rule="sum"),
    "grouped_values": replace(BASE, rule="gated_delta", value_heads=4),
    "negative_eigenvalues": replace(BASE, negative_eigenvalues=True),
    "no_beta": replace(BASE, learned_beta=False),
    "no_conv": replace(BASE, conv_width=0),
    "conv_of_two": replace(BASE, conv_width=2),
    "no_gate": replace(BASE, output_gate=False),
    "elu_sum": replace(BASE, feature_map="elu", normalisation="sum"),
    "relu": replace(BASE, feature_map="relu"),
    "identity": replace(BASE, feature_map="identity"),
    "unnormalised_sum_rule": replace(BASE, rule="sum", feature_map="elu", normalisation="none"),
}


def make_model(mixer: MixerConfig, chunk: int) -> LanguageModel:
    config = ModelConfig(
        model_type="test", vocab_size=23, hidden_size=20, num_layers=2, intermediate_size=24, norm_eps=1e-6,
        tied=True, mixer=mixer,
    )  # fmt: skip
    model = LanguageModel(config, chunk=chunk)
    model.initialise(1)
    return model.double()


def some_tokens(count: int) -> Tensor:
    return torch.randint(0, 23, (2, count), generator=torch.Generator().manual_seed(2))


def state_values(model: LanguageModel, state: list) -> Tensor:
    return torch.cat([tensor.flatten() for layer in state for tensor in layer])


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS.keys())
@pytest.mark.parametrize("tokens", [1, 16, 63])
def test_chunked_equals_recurrent(mixer: MixerConfig, tokens: int) -> None:
    recurrent, chunked, x = make_model(mixer, 0), make_model(mixer, 16), some_tokens(tokens)
    expected, expected_state = recurrent(x, recurrent.initial_state(2))
    actual, actual_state = chunked(x, chunked.initial_state(2))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        state_values(chunked, actual_state), state_values(recurrent, expected_state), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS.keys())
@pytest.mark.parametrize("split", [1, 2, 7, 16, 50])
def test_any_split_reaches_the_same_state(mixer: MixerConfig, split: int) -> None:
    model, x = make_model(mixer, 16), some_tokens(50)
    whole, whole_state = model(x, model.initial_state(2))
    parts, state = [], model.initial_state(2)
    for start in range(0, x.shape[1], split):
        logits, state = model(x[:, start : start + split], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(state_values(model, state), state_values(model, whole_state), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_are_those_of_the_definition(gated: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    k = torch.nn.functional.normalize(leaf(2, 20, 3, 5), dim=-1)
    inputs = [leaf(2, 20, 3, 5), k, leaf(2, 20, 3, 4), leaf(2, 20, 3).sigmoid(), leaf(2, 3, 4, 5)]
    log_decay = -leaf(2, 20, 3).exp() if gated else None

    def gradients(chunk: int) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        q, k, v, beta, state = leaves
        decay = None if log_decay is None else log_decay.clone().requires_grad_()
        if chunk:
            out, state = chunked_rule(q, k, v, beta, decay, state, delta=True, chunk=chunk)
        else:
            out, state = recurrent_rule(q, k, v, beta, decay, state, delta=True)
        (out.cos().sum() + state.sin().sum()).backward()
        return [x.grad for x in leaves + ([] if decay is None else [decay])]

    for actual, expected in zip(gradients(8), gradients(0), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_strong_decay_stays_finite() -> None:
    """Without subtracting before exp, e^-G of 64 steps of -5 would overflow float32."""
    shape = (1, 64, 1)
    q = torch.ones(*shape, 4) / 2
    out, state = chunked_rule(
        q, q, q, torch.full(shape, 0.5), torch.full(shape, -5.0), torch.ones(1, 1, 4, 4), delta=True, chunk=64
    )
    assert out.isfinite().all() and state.isfinite().all()
