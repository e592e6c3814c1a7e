"""Greedy k-center: the textbook loop, its guarantee, and what a bank loses by it."""

import numpy as np
import pytest

from calibration.coreset import greedy_k_center, reduce_memory
from engines.detector import Memory
from engines.errors import UsageError


def unit(shape, seed, spread=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if spread is not None:
        centres = rng.standard_normal((spread, shape[-1]))
        x = centres[rng.integers(0, spread, shape[:-1])] + 0.05 * x
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("total", "count"), [(500, 40), (3000, 200), (5000, 1)])
def test_every_pick_is_the_farthest_of_all_at_its_turn(total, count):
    """Gonzalez 1985 replayed one pick after the other, in Euclidean distances and f64."""
    tokens = unit((total, 24), 1)
    rows, coverage = greedy_k_center(tokens, count)
    wide = tokens.astype(np.float64)
    mean = np.linalg.norm(wide - wide.mean(0), axis=1)
    assert mean[rows[0]] == pytest.approx(mean.min(), abs=1e-6)
    far = np.full(total, np.inf)
    for turn, row in enumerate(rows):
        assert turn == 0 or far[row] > far.max() - 1e-5  # f32 products may swap near ties
        far = np.minimum(far, np.linalg.norm(wide - wide[row], axis=1))
    assert coverage.radius == pytest.approx(far.max(), abs=1e-3)
    assert coverage.mean == pytest.approx(far.mean(), abs=1e-3)


def test_every_cluster_gets_a_token_before_any_gets_a_second_far_one():
    tokens = unit((4000, 16), 2, spread=30)
    rows, coverage = greedy_k_center(tokens, 60)
    assert coverage.radius < 0.6  # clusters are about 0.2 wide and 1.4 apart
    assert len(set(rows.tolist())) == 60


def test_no_distance_grows_by_more_than_the_radius():
    tokens, queries = unit((2, 400, 225, 8), 3)[0].reshape(-1, 8), unit((300, 8), 4)
    rows, coverage = greedy_k_center(tokens, 900)

    def nearest(memory):
        return np.sqrt(np.maximum(2 - 2 * (queries @ memory.T).max(1), 0))

    loss = nearest(tokens[rows]) - nearest(tokens)
    assert loss.min() >= -1e-6
    assert loss.max() <= coverage.radius + 1e-6


def test_identical_references_cost_nothing():
    one = unit((1, 1, 225, 12), 5)
    memory = Memory((np.tile(one, (1, 7, 1, 1)),) * 3)
    small, covered = reduce_memory(memory, 1)
    assert [t.shape for t in small.taps] == [(1, 1, 225, 12)] * 3
    assert all(c.radius == 0 for c in covered)
    assert set(map(bytes, small.taps[0][0, 0])) == set(map(bytes, one[0, 0]))


def test_taps_of_different_width_are_cut_alone():
    memory = Memory(tuple(unit((1, 6, 225, d), d) for d in (16, 16, 8)))
    small, covered = reduce_memory(memory, 2)
    assert [t.shape for t in small.taps] == [(1, 2, 225, 16), (1, 2, 225, 16), (1, 2, 225, 8)]
    assert [(c.kept, c.of) for c in covered] == [(450, 1350)] * 3


def test_a_memory_that_is_small_enough_stays_as_it_is():
    memory = Memory((unit((1, 2, 225, 8), 6),) * 3)
    small, covered = reduce_memory(memory, 2)
    assert np.array_equal(small.taps[0], memory.taps[0])
    assert covered[0].radius == 0


@pytest.mark.parametrize(("groups", "references"), [(2, 1), (1, 0)])
def test_misuse_is_refused_with_a_sentence(groups, references):
    memory = Memory((unit((groups, 2, 225, 4), 7),) * 3)
    with pytest.raises(UsageError, match="coreset"):
        reduce_memory(memory, references)
