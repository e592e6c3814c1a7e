import time

import numpy as np
import pytest

from calibration.procedural import MATERIALS, Kind, noise
from calibration.synthetic import CATEGORIES, make_defect


def good_and_donor(seed=0):
    rng = np.random.default_rng(seed)
    return Kind.of(seed).part(rng), Kind.of(seed + 50).part(rng)


@pytest.mark.parametrize("seed", range(len(MATERIALS)))
def test_a_kind_is_recognisable_and_its_parts_differ(seed):
    kind = Kind.of(seed)
    one, two = (kind.part(np.random.default_rng(i)) for i in (1, 2))
    assert one.shape == (240, 240, 3) and one.dtype == np.uint8
    assert not np.array_equal(one, two)
    assert np.array_equal(one, kind.part(np.random.default_rng(1)))
    assert 2 < one.std() < 110


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_mask_is_exactly_where_the_part_changed(category):
    good, donor = good_and_donor()
    for seed in range(6):
        made = make_defect(np.random.default_rng(seed), good, donor, category)
        changed = np.abs(made.image.astype(int) - good).max(2)
        assert made.mask.sum() >= 12
        # Far from the mask nothing visible happened (blending may fade out at its rim).
        import cv2

        near = cv2.dilate(made.mask.astype(np.uint8), np.ones((31, 31), np.uint8)) > 0
        assert changed[~near].mean() < 1.0
        assert changed[made.mask].mean() > 4


def test_the_same_seed_makes_the_same_defect():
    good, donor = good_and_donor(3)
    one, two = (make_defect(np.random.default_rng(9), good, donor) for _ in range(2))
    assert np.array_equal(one.image, two.image) and np.array_equal(one.mask, two.mask)


def test_defects_appear_all_over_the_part():
    good, donor = good_and_donor(5)
    heat = np.zeros((3, 3))
    rng = np.random.default_rng(0)
    for _ in range(120):
        ys, xs = np.nonzero(make_defect(rng, good, donor).mask)
        heat[int(ys.mean()) // 80, int(xs.mean()) // 80] += 1
    assert (heat > 3).all()


def test_noise_has_unit_spread_and_stretches_along_its_angle():
    field = noise(np.random.default_rng(0), 1.0, stretch=10.0)
    assert abs(field.mean()) < 1e-4 and field.std() == pytest.approx(1, abs=1e-3)
    along, across = np.abs(np.diff(field, axis=1)).mean(), np.abs(np.diff(field, axis=0)).mean()
    assert along < 0.6 * across


def test_fast_enough_to_feed_training():
    good, donor = good_and_donor()
    rng = np.random.default_rng(0)
    start = time.process_time()
    for _ in range(50):
        make_defect(rng, good, donor)
    assert (time.process_time() - start) / 50 < 0.1
