import numpy as np
import pytest
from scipy import stats

from calibration.thresholds import (
    beta_binomial_pmf,
    conformal_threshold,
    parts_needed,
    reject_interval,
)


@pytest.mark.parametrize(("alpha", "need"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.5, 1)])
def test_a_rate_needs_the_stated_number_of_parts(alpha, need):
    assert parts_needed(alpha) == need
    assert conformal_threshold([0.1] * need, alpha).learning is False
    assert conformal_threshold([0.1] * (need - 1), alpha).learning is True


def test_nineteen_parts_put_the_threshold_at_the_largest_score():
    found = conformal_threshold(list(range(19)), 0.05)
    assert (found.value, found.k, found.n) == (18.0, 19, 19)


def test_the_quantile_is_the_kth_smallest_for_many_parts():
    scores = np.random.default_rng(3).uniform(size=199)
    found = conformal_threshold(scores, 0.05)
    assert found.k == 190
    assert found.value == np.sort(scores)[189]


def test_no_part_at_all_calls_nothing_ng_and_learns():
    found = conformal_threshold([], 0.05)
    assert found.learning
    assert found.value == 1.0


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        conformal_threshold([0.1, float("nan")])


@pytest.mark.parametrize(("m", "a", "b"), [(1, 1, 19), (100, 2, 60), (37, 10, 190)])
def test_beta_binomial_agrees_with_scipy(m, a, b):
    ours = beta_binomial_pmf(m, a, b)
    theirs = stats.betabinom.pmf(np.arange(m + 1), m, a, b)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("n", "k", "m"), [(19, 19, 100), (60, 58, 80), (199, 190, 200)])
def test_interval_holds_the_rate_of_simulated_enrolments(n, k, m):
    low, high = reject_interval(n, k, m)
    rng = np.random.default_rng(42)
    inside = 0
    for _ in range(2000):
        threshold = np.sort(rng.uniform(size=n))[k - 1]
        rate = (rng.uniform(size=m) > threshold).mean()
        inside += low <= rate <= high
    assert inside / 2000 >= 0.94


def test_the_false_reject_rate_is_what_is_promised_on_average():
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(4000):
        found = conformal_threshold(rng.standard_normal(39), 0.05)
        rates.append((rng.standard_normal(200) > found.value).mean())
    assert abs(np.mean(rates) - 2 / 40) < 0.004
