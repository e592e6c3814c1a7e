import numpy as np
import pytest

from calibration.metrics import aupro, auroc, mean_and_deviation


def test_auroc_vectors_of_the_specification():
    assert auroc([0, 0, 1, 1], np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    tied = auroc([1, 0, 1, 0, 1], np.array([0.5, 0.5, 0.5, 0.2, 0.9]))
    assert tied == pytest.approx(0.833333, abs=1e-6)


def test_auroc_equals_the_count_of_pairs():
    rng = np.random.default_rng(0)
    labels, scores = rng.uniform(size=300) < 0.3, rng.integers(0, 12, 300).astype(float)
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels] for b in scores[~labels]
    ]
    assert auroc(labels, scores) == pytest.approx(np.mean(wins), abs=1e-12)


def test_auroc_of_one_class_is_undefined():
    assert auroc([1, 1], np.array([0.1, 0.2])) is None


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        auroc([0, 1], np.array([0.1, np.nan]))


def test_aupro_vector_of_the_specification():
    mask = np.zeros((1, 400, 7), bool)
    mask[0, :, 3] = True
    maps = np.arange(2800).reshape(1, 400, 7) / 2800
    assert aupro(mask, maps, 1 / 3) == pytest.approx(0.166665625, abs=1e-9)


def test_aupro_weighs_small_and_large_regions_alike():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 2:4, 2:4] = mask[0, 10:30, 10:30] = True
    maps = np.zeros((1, 40, 40))
    maps[0, 10:30, 10:30] = 1.0
    # The large region is found at once, the small one is tied with all good pixels.
    slope = aupro(mask, maps, 0.3)
    assert slope == pytest.approx(0.5 + 0.5 * 0.15, abs=1e-9)


def test_aupro_of_a_perfect_map_is_one_and_without_regions_undefined():
    mask = np.zeros((2, 20, 20), bool)
    assert aupro(mask, mask.astype(float)) is None
    mask[0, 3:6, 3:9] = True
    assert aupro(mask, mask.astype(float)) == pytest.approx(1.0)


def test_mean_and_deviation_leave_out_what_is_undefined():
    assert mean_and_deviation([1.0, None, 3.0]) == (2.0, pytest.approx(np.sqrt(2)))
    assert mean_and_deviation([None]) == (None, None)
    assert mean_and_deviation([4.0]) == (4.0, None)
