"""The text cue is believed as far as it finds the shown good parts normal."""

import numpy as np
import pytest

from calibration.trust import LEAST, LIMIT, STEEPNESS, carry, reference_trust


def cue(good: float, odd: float, share: float) -> np.ndarray:
    """P (2,15,15,3) of two good parts: `good` everywhere, `odd` on this share of taps b and c."""
    p = np.full((2, 225, 3), good)
    p[:, : round(225 * share), 1:] = odd
    return p.reshape(2, 15, 15, 3)


def test_a_cue_that_finds_good_parts_normal_is_believed_as_it_is():
    assert reference_trust(cue(0.02, 0.02, 0)) == 1
    assert reference_trust(cue(0.02, 0.95, 0.04)) == 1  # a speck is no reason


def test_a_cue_that_is_only_half_wrong_is_believed():
    assert reference_trust(cue(0.02, 0.8, 0.3)) == 1


def test_a_cue_surely_wrong_about_good_parts_is_doubted_the_more_the_surer_it_is():
    found = [reference_trust(cue(0.02, odd, 0.3)) for odd in (0.9, 0.95, 0.97)]
    for odd, factor in zip((0.9, 0.95, 0.97), found, strict=True):
        excess = np.log(odd / (1 - odd)) - LIMIT
        assert factor == pytest.approx(np.exp(-STEEPNESS * excess))
    assert found[0] > found[1] > found[2]


def test_one_of_the_two_taps_is_enough_to_doubt():
    p = cue(0.02, 0.02, 0)
    p[..., 2] = 0.97
    assert reference_trust(p) < 0.05


def test_tap_a_says_how_odd_a_patch_is_and_is_not_asked():
    p = cue(0.02, 0.02, 0)
    p[..., 0] = 0.99
    assert reference_trust(p) == 1


def test_certain_cues_have_finite_logits():
    assert reference_trust(np.zeros((1, 225, 3))) == 1
    assert reference_trust(np.ones((1, 225, 3))) == LEAST


def test_the_trust_is_the_length_of_the_anchors():
    pair = np.zeros((1, 2, 192), np.float32)
    pair[0, 0, 3] = pair[0, 1, 5] = 1
    carried = carry(pair, 0.25)
    assert carried.dtype == np.float32
    assert np.allclose(np.linalg.norm(carried, axis=-1), 0.25)
