"""What training/families.py says of fla's checkpoints is what fla's files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training import weights_file
from training.families import DEFAULTS, parameter_count, tensor_shapes, with_defaults

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDENS = sorted(
    path.parent for name in ("golden", "golden_fla") for path in (REPOSITORY / "tests" / name).glob("*/config.json")
)
# Configs of fla's defaults as transformers writes them: every key is there.
CONFIGS = sorted((REPOSITORY / "server" / "model" / "testing" / "configs").glob("*-transformers-*.json"))


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_golden_models_have_these_tensors(folder: Path) -> None:
    found = {}
    for path in folder.glob("model*.safetensors"):
        found.update({name: values.shape for name, values in weights_file.read(path).items()})
    assert found == tensor_shapes(json.loads((folder / "config.json").read_text()))


def test_every_family_has_goldens() -> None:
    families = {json.loads((folder / "config.json").read_text())["model_type"] for folder in GOLDENS}
    assert families == set(DEFAULTS)


@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults_are_those_of_the_library(family: str) -> None:
    paths = [path for path in CONFIGS if path.name.startswith(f"{family}-")]
    assert paths
    for path in paths:
        theirs = json.loads(path.read_text())
        ours = with_defaults({"model_type": family})
        assert ours == {key: theirs[key] for key in ours}
        assert tensor_shapes({"model_type": family}) == tensor_shapes(theirs)


def test_known_parameter_count() -> None:
    delta_net = {"model_type": "delta_net", "hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16}
    assert parameter_count(delta_net) == 1_365_677_056


def test_keys_of_other_families_change_nothing() -> None:
    config = {"model_type": "gated_deltaproduct", "num_householder": 2}
    assert tensor_shapes({**config, "num_v_heads": 12, "num_kv_heads": 3}) == tensor_shapes(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "llama"), ("attn", {"layers": [0]}), ("attnres_block_size", 2), ("hidden_act", "powlu")],
)
def test_other_models_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        tensor_shapes({"model_type": "gla", key: value})
