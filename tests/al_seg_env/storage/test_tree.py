"""Trees of plain values and arrays come back from their files as they were."""

import numpy as np
import pytest
import torch

from al_seg_env.storage import load_tree, save_tree, tree_digest

BASE = np.arange(24.0, dtype=np.float32).reshape(4, 6)
ARRAYS = {
    "empty": np.empty((0,), np.int64),
    "no columns": np.empty((4, 0), np.int64),
    "one broadcast": np.broadcast_to(np.int64(3), (1,)),
    "broadcast": np.broadcast_to(np.float32(0.5), (3, 2)),
    "columns": BASE[:, ::2],
    "transposed": BASE.T,
    "backwards": BASE[::-1],
    "big-endian": BASE.astype(">f4"),
    "booleans": BASE > 3,
    "read-only": np.frombuffer(bytes(8), np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_any_array_comes_back(tmp_path, name):
    save_tree(tmp_path / "tree", "test", {"array": ARRAYS[name], "one": ARRAYS[name].ravel()[:1].sum()})
    found = load_tree(tmp_path / "tree", "test")
    assert found["array"].dtype == ARRAYS[name].dtype.newbyteorder("=")
    np.testing.assert_array_equal(found["array"], ARRAYS[name])
    assert found["one"] == ARRAYS[name].ravel()[:1].sum()
    assert found["one"].shape == ()


def test_arrays_and_tensors_that_share_memory_come_back_apart(tmp_path):
    tensor = torch.from_numpy(BASE)
    save_tree(tmp_path / "tree", "test", [BASE, BASE[1:], tensor, tensor.T, BASE])
    found = load_tree(tmp_path / "tree", "test")
    for value, expected in zip(found, [BASE, BASE[1:], tensor, tensor.T, BASE], strict=True):
        assert type(value) is type(expected)
        np.testing.assert_array_equal(np.asarray(value), np.asarray(expected))
    found[0][:] = 0
    np.testing.assert_array_equal(found[4], BASE)


def test_the_digest_is_of_the_content_alone():
    assert tree_digest({"a": BASE.T}) == tree_digest({"a": np.ascontiguousarray(BASE.T)})
    assert tree_digest({"a": BASE.T}) != tree_digest({"a": BASE.reshape(6, 4)})
    assert tree_digest([np.empty((0, 4))]) != tree_digest([np.empty((4, 0))])
