"""The paper's models and tasks: forms that must agree, and laws of state."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from training import weights_file
from training.paper import report, synthetic
from training.paper.features import draw_projection, features
from training.paper.language import SYSTEMS, export
from training.paper.model import MixerSettings, PaperModel, Shape
from training.paper.runs import Run, collect
from training.paper.synthetic import CAPACITY, UPDATES, RetrievalModel, Task, with_all_queries

SHAPE = Shape(vocab_size=50, hidden_size=24, layers=2, heads=3, head_dim=6, intermediate_size=32, segment_length=7)
IDENTITY = {"identity": MixerSettings(update_rule="delta", feature_map="identity", qk_norm="none")}
SETTINGS = {**SYSTEMS, **IDENTITY, "dpfp2-sum": MixerSettings(feature_map="dpfp", dpfp_nu=2, attention_norm="output")}


def model_of(settings: MixerSettings, chunk: int) -> PaperModel:
    torch.manual_seed(3)
    model = PaperModel(SHAPE, settings, chunk=chunk).double()
    model.initialise(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(8)  # far from the start, where everything is nearly linear
    return model


def run(model: PaperModel, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    state, parts = model.initial_state(len(tokens)), []
    for part in tokens.split(lengths, 1):
        logits, state = model(part, state)
        parts.append(logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_chunked_equals_recurrent_and_carried_equals_uninterrupted(name: str) -> None:
    tokens = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    recurrent, chunked = model_of(SETTINGS[name], 0), model_of(SETTINGS[name], 4)
    chunked.load_state_dict(recurrent.state_dict())
    truth = run(recurrent, tokens, [20])
    assert truth.std() > 0.1
    for model, lengths in ((chunked, [20]), (chunked, [1, 9, 10]), (recurrent, [7, 13]), (recurrent, [1] * 20)):
        torch.testing.assert_close(run(model, tokens, lengths), truth, rtol=1e-9, atol=1e-9)
    fresh = torch.cat((run(recurrent, tokens[:, :10], [10]), run(recurrent, tokens[:, 10:], [10])), 1)
    assert (fresh - truth)[:, 10:].abs().max() > 1e-3, "a carried state makes a difference"


def test_softmax_sees_its_window_only() -> None:
    model = model_of(MixerSettings(mixer="softmax"), 0)
    tokens = torch.randint(50, (1, 30), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 0] += 1
    difference = (run(model, tokens, [30]) - run(model, changed % 50, [30])).abs().amax((0, 2))
    reach = SHAPE.layers * (SHAPE.segment_length - 1)
    assert (difference[1 : reach + 1] > 0).all() and (difference[reach + 1 :] == 0).all()


def test_attention_normalisation_follows_the_definition_by_hand() -> None:
    model = model_of(SYSTEMS["delta-attention-norm"], 0)
    mixer = model.model.layers[0].attn
    x = torch.randn(1, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    y, _ = mixer(x, mixer.initial_state(1))
    heads = []
    for h in range(3):
        rows = slice(6 * h, 6 * h + 6)
        q, k = (torch.nn.functional.elu(x[0] @ p.weight[rows].t()) + 1 for p in (mixer.q_proj, mixer.k_proj))
        q, k = q / q.sum(-1, keepdim=True), k / k.sum(-1, keepdim=True)
        v, beta = x[0] @ mixer.v_proj.weight[rows].t(), (x[0] @ mixer.b_proj.weight[h]).sigmoid()
        state, z, out = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64), []
        for t in range(5):
            seen = 1.0 if t == 0 else z @ k[t]
            key = k[t] / (seen + 1e-5)
            state = state + torch.outer(key, beta[t] * seen * (v[t] - key @ state))
            z = z + k[t]
            out.append(6**-0.5 * (q[t] @ state) / (z @ q[t] + 1e-5))
        heads.append(torch.stack(out))
    torch.testing.assert_close(y[0], torch.cat(heads, -1) @ mixer.o_proj.weight.t())


def test_exported_folder_has_the_tensors_and_the_settings(tmp_path) -> None:
    model = model_of(SYSTEMS["favor-delta"], 4).float()
    export(model, tmp_path)
    tensors = weights_file.read(tmp_path / "model.safetensors")
    assert tensors["model.layers.1.attn.feature_projection"].shape == (SYSTEMS["favor-delta"].favor_features, 6)
    np.testing.assert_array_equal(tensors["lm_head.0.bias"], model.lm_head[0].bias.detach().numpy())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["update_rule"] == "delta" and config["feature_map"] == "favor" and config["qk_norm"] == "sum"


def test_dpfp_features_by_hand() -> None:
    got = features(torch.tensor([2.0, -3.0]), "dpfp", rolls=2)  # r = 2 0 0 3
    torch.testing.assert_close(got, torch.tensor([2 * 3.0, 0, 0, 0, 0, 0, 0, 0]))


def test_favor_estimates_the_softmax_kernel() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 8) * 0.3
    same = draw_projection(8, 4096)
    got = features(x, "favor", projection=same) @ features(y, "favor", projection=same)
    assert got.item() == pytest.approx((x @ y).exp().item(), rel=0.1)


def read_step_by_step(model: RetrievalModel, keys, values, queries) -> torch.Tensor:
    """What the queries read, from a state written pair by pair."""
    k, q = model._paired(model.k_proj, keys, values), model.q_proj(model.embedding)[queries]
    k, q = model._features(k), model._features(q)
    value = torch.eye(model.unique, dtype=k.dtype)[values]
    state, z = k.new_zeros(k.shape[-1], model.unique), k.new_zeros(k.shape[-1])
    beta = model._paired(model.b_proj, keys, values).sigmoid() if model.system.rule == "delta" else None
    for t in range(len(k)):
        if beta is None:
            state, z = state + torch.outer(k[t], value[t]), z + k[t]
        else:
            key = k[t] / k[t].sum()
            state = state + torch.outer(key, beta[t] * (value[t] - key @ state))
    divisor = (q @ z if beta is None else q.sum(-1)) + 1e-6
    return (q @ state) / divisor[:, None]


WITH_STATE = [(1, system) for system in CAPACITY if system.rule != "softmax"] + [(2, system) for system in UPDATES]


@pytest.mark.parametrize("setting,system", WITH_STATE)
def test_retrieval_weights_are_the_recurrence(setting: int, system: synthetic.System) -> None:
    model = RetrievalModel(system, 12, seed=1).double()
    keys, values = synthetic.draw(setting, 12, 12 * setting, 1, torch.Generator().manual_seed(1))
    sequences = with_all_queries(keys, values, 12)
    asked = sequences.queries[0][sequences.queries[0] >= 0]
    read = read_step_by_step(model, keys[0], values[0], asked)
    expected = 0.5 * (read - torch.eye(12)[sequences.targets[0][sequences.queries[0] >= 0]]).square().sum(-1)
    got = model.losses(sequences)[0]
    torch.testing.assert_close(got[sequences.queries[0] >= 0], expected)
    one = synthetic.Sequences(keys, values, asked[None, :1], sequences.targets[:, asked[:1]])
    torch.testing.assert_close(model.losses(one)[0, 0], expected[0])


def test_the_last_value_of_a_key_counts() -> None:
    keys, values = torch.tensor([[2, 0, 2]]), torch.tensor([[1, 2, 0]])
    sequences = with_all_queries(keys, values, 3)
    assert sequences.queries.tolist() == [[0, -1, 2]] and sequences.targets.tolist() == [[2, -1, 0]]
    drawn = {
        tuple(x.item() for x in synthetic.with_one_query(keys, values, torch.Generator().manual_seed(i))[2:])
        for i in range(20)
    }
    assert drawn == {(0, 2), (2, 0)}


def test_training_learns_a_small_task_and_is_exported_with_its_sequences(tmp_path) -> None:
    task = Task(1, CAPACITY[2], 10)
    model, facts = synthetic.train(task, synthetic.Budget(steps=2000, minutes=1))
    assert facts["stopped"] == "solved" and facts["last_logged"] <= 0.001
    sets = synthetic.evaluation_sets(task)
    synthetic.export(model, sets, tmp_path / "model.safetensors")
    tensors = weights_file.read(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(tensors["evaluation.10.keys"], sets[10].keys.numpy())
    assert synthetic.mean_loss(model, sets[10]) < 0.01


def point(system: str, unique: int, loss: float) -> dict:
    facts = {"setting": 1, "system": system, "unique": unique, "stopped": "solved", "curve": [loss]}
    return {"name": f"setting1-{system}-u{unique}", **facts, "losses": {str(unique): loss}}


def test_page_says_what_was_measured_and_what_was_not(tmp_path) -> None:
    for item in (point("dpfp1-sum", 100, 0.0123), point("dpfp1-sum", 600, 0.2)):
        Run(tmp_path / "work" / "synthetic" / item["name"]).finish(item)
    results = tmp_path / "results"
    collect(tmp_path / "work", results, "synthetic")
    report.write(results, tmp_path / "paper.md", tmp_path / "paper")
    page = (tmp_path / "paper.md").read_text()
    assert "| DPFP-1 sum | 0.0123 (0.0002) | 0.2000 (0.4177) |" in page
    assert "**Did not hold.** No linear read beats" in page and "1 below the bound" in page
    assert "**Not measured.** With keys that come back" in page
    assert "No results of the language part" in page
    assert (tmp_path / "paper" / "capacity.svg").exists()


def test_collecting_replaces_a_run_and_keeps_the_others(tmp_path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    for item in (point("softmax", 20, 0.1), point("softmax", 60, 0.2)):
        Run(work / "synthetic" / item["name"]).finish(item)
    collect(work, results, "synthetic")
    again = tmp_path / "again"
    Run(again / "synthetic" / "setting1-softmax-u60").finish(point("softmax", 60, 0.3))
    merged = collect(again, results, "synthetic")
    assert [item["losses"] for item in merged] == [{"20": 0.1}, {"60": 0.3}]
