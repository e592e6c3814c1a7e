"""OK is the only positive statement, and hard to get."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from station.verdict import judge

ANY = st.floats(allow_nan=True, allow_infinity=True)


@given(ANY, ANY, st.booleans())
@example(math.nan, 0.5, False)
@example(0.1, math.nan, False)
@example(-math.inf, 0.5, False)
@example(0.1, math.inf, False)
def test_ok_only_for_finite_scores_at_or_below_a_finite_threshold(score, threshold, learning):
    verdict, reason = judge(score, threshold, learning)
    finite = math.isfinite(score) and math.isfinite(threshold)
    if verdict == "OK":
        assert finite and score <= threshold and not learning
    if not finite:
        assert (verdict, reason) == ("ERROR", "not_finite")


@pytest.mark.parametrize(
    ("score", "threshold", "learning", "expected"),
    [
        (0.4, 0.5, False, ("OK", "score")),
        (0.5, 0.5, False, ("OK", "score")),
        (math.nextafter(0.5, 1), 0.5, False, ("NG", "score")),
        (0.6, 0.5, True, ("NG", "score")),
        (0.4, 0.5, True, ("UNDECIDED", "recipe")),
        (0.5, 0.5, True, ("UNDECIDED", "recipe")),
        (math.nan, 0.5, False, ("ERROR", "not_finite")),
        (0.4, math.nan, False, ("ERROR", "not_finite")),
        (math.inf, 0.5, False, ("ERROR", "not_finite")),
        (-math.inf, 0.5, False, ("ERROR", "not_finite")),
        (0.4, math.inf, True, ("ERROR", "not_finite")),
        (0.0, 0.0, False, ("OK", "score")),
        (-0.0, 0.0, False, ("OK", "score")),
        (-1.0, -0.5, False, ("OK", "score")),
    ],
)
def test_the_table(score, threshold, learning, expected):
    assert judge(score, threshold, learning) == expected


def test_a_recipe_is_not_learning_unless_it_says_so():
    assert judge(0.1, 0.5)[0] == "OK"
