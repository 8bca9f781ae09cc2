"""Files of torch.save that torch would never write. Needs NumPy only; import_lmtool_test has those that it writes."""

from __future__ import annotations

import pytest

from training import torch_pickle
from training.torch_pickle import UnsafePickleError


def test_what_is_allowed_cannot_be_changed(tmp_path) -> None:
    # BUILD on the function that makes tensors, with a state that sets its attribute.
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x09\x00\x00\x00_functionK\x01ub."
    path = tmp_path / "evil.pt"
    path.write_bytes(program)
    with pytest.raises(UnsafePickleError, match="sets the state of a function"):
        torch_pickle.load(path)


def test_tensors_that_reach_beyond_their_storage_are_refused() -> None:
    storage = torch_pickle._Storage("<f4", 4, bytes(16))
    assert torch_pickle.Tensor(storage, 1, (3,), (1,)).numpy().shape == (3,)
    for offset, shape, strides in (
        (2, (3,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 3), (1, 2)),
        (0, (2,), ()),
    ):
        with pytest.raises(ValueError, match="damaged"):
            torch_pickle.Tensor(storage, offset, shape, strides).numpy()
