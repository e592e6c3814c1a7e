import numpy as np
import pytest

from calibration.baselines import (
    METHODS,
    VARIANTS,
    box,
    enlarge,
    nearest,
    patchcore,
    rows,
    spade,
)


def features(seed, count=3):
    return np.random.default_rng(seed).normal(size=(count, 272, 15, 15)).astype(np.float32)


def test_nearest_is_the_smallest_of_all_distances():
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(2, 7, 5)), rng.normal(size=(11, 5))
    brute = np.linalg.norm(queries[:, :, None] - bank, axis=-1).min(-1)
    ours = nearest(queries.astype(np.float32), bank.astype(np.float32))
    np.testing.assert_allclose(ours, brute, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_picture_in_memory_is_at_distance_nought(variant):
    flat = rows(features(1), variant)
    assert flat.shape == (3, 225, 112 if variant.deep else 272)
    assert patchcore(flat, flat[:2])[:2].max() < 2e-2
    assert patchcore(flat, flat[:2])[2].min() > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_a_changed_place_stands_out(name):
    flat = rows(features(2, 4), VARIANTS[-1])
    ill = flat[:1].copy()
    ill[0, 7 * 15 + 9] += 5.0
    grid = METHODS[name](ill, flat)
    assert grid.shape == (1, 15, 15)
    y, x = np.unravel_index(grid[0].argmax(), (15, 15))
    assert abs(y - 7) <= 1 and abs(x - 9) <= 1


def test_spade_asks_the_most_similar_picture_alone():
    flat = rows(features(3, 2), VARIANTS[-1])
    shifted = flat + np.array([0.0, 3.0], np.float32)[:, None, None]
    own = spade(shifted[1:], shifted)
    assert own.max() < 0.1


def test_box_repeats_its_edges_and_enlarging_keeps_a_constant():
    grid = np.arange(225, dtype=np.float32).reshape(1, 15, 15, 1)
    mean = box(grid, 3)
    assert mean[0, 7, 7, 0] == grid[0, 7, 7, 0]
    assert mean[0, 0, 0, 0] == pytest.approx((0 * 4 + 1 * 2 + 15 * 2 + 16) / 9)
    assert np.allclose(enlarge(np.full((1, 15, 15), 0.3, np.float32)), 0.3)
