"""The map of keys: principal components, as numpy's singular value decomposition has them."""

import numpy as np
import pytest

from cmt.server.key_map import principal_components


def keys(rows, size, seed=0):
    made = np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_they_are_the_singular_vectors_up_to_scale():
    keys_NC = keys(40, 8)
    plane_N2, explained = principal_components(keys_NC)
    centred = keys_NC - keys_NC.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    for axis in range(2):
        assert abs(np.corrcoef(left[:, axis], plane_N2[:, axis])[0, 1]) == pytest.approx(1.0)
    assert explained == pytest.approx(tuple((values**2 / (values**2).sum())[:2]))
    assert np.abs(plane_N2).max(0) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_equal_keys_lie_on_one_point(rows):
    plane_N2, explained = principal_components(np.tile(keys(1, 6), (rows, 1)))
    assert not plane_N2.any()
    assert all(np.isfinite(explained))


def test_the_order_of_keys_does_not_matter():
    keys_NC = keys(30, 5, seed=3)
    order = np.random.default_rng(1).permutation(30)
    plane_N2, _ = principal_components(keys_NC)
    shuffled_N2, _ = principal_components(keys_NC[order])
    assert np.allclose(plane_N2[order], shuffled_N2)
