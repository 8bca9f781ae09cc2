from pathlib import Path

import numpy as np
import pytest

from training import weights_file
from training.fla_reference import Model

TESTS = Path(__file__).resolve().parent.parent / "tests"
GOLDENS = sorted(
    path.parent for name in ("golden", "golden_fla") for path in (TESTS / name).glob("*/golden.safetensors")
)


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_golden_models_agree(folder: Path) -> None:
    golden = weights_file.read(folder / "golden.safetensors")
    tokens = golden["tokens"]
    log_probs = Model(folder).run(tokens)
    following = log_probs[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(following, golden["next_logprob"], rtol=0, atol=3e-6)
    np.testing.assert_allclose(log_probs[golden["rows"]], golden["row_logprobs"], rtol=0, atol=3e-6)


def test_every_family_has_goldens_of_the_library() -> None:
    families = {Model(folder).family for folder in GOLDENS if folder.parent.name == "golden_fla"}
    assert families == {"delta_net", "gated_deltanet", "gated_deltaproduct", "kda", "gla", "linear_attn"}
