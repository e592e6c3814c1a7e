"""The drift monitor: quiet while nothing changes, early when it does."""

import numpy as np
import pytest
import uikit

from station.drift import DriftMonitor, RecipeDrift, SignalMonitor, mann_whitney_z

stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
SPREAD = 0.25  # of log scores


def scores(rng, n, shift=0.0):
    return np.exp(rng.normal(-2.0 + shift, SPREAD, n))


def test_the_statistic_is_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.3, 1, 40).round(1), rng.normal(0, 1, 60).round(1)
    told = stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=False)
    z = mann_whitney_z(a, b)
    assert 2 * stats.norm.sf(abs(z)) == pytest.approx(told.pvalue, rel=1e-9)
    assert z > 0


def test_no_alarm_in_twenty_runs_of_two_thousand_parts_without_drift():
    alarms = 0
    for run in range(20):
        rng = np.random.default_rng([1, run])
        monitor = SignalMonitor("score")
        alarms += any(monitor.add(s) for s in scores(rng, 2000))
    assert alarms == 0


def test_slow_drift_alarms_before_the_false_reject_rate_doubles():
    # 5 % are above the threshold at first, 10 % when the log scores have moved by .363 spreads.
    doubled = SPREAD * (stats.norm.isf(0.05) - stats.norm.isf(0.10))
    per_part = doubled / 5000
    early = 0
    for run in range(20):
        rng = np.random.default_rng([2, run])
        threshold = float(np.exp(-2.0 + SPREAD * stats.norm.isf(0.05)))
        monitor = SignalMonitor("score")
        for s in scores(rng, 560):
            if s <= threshold:
                monitor.add(s)
        for step in range(5000):
            score = float(scores(rng, 1, step * per_part)[0])
            if score <= threshold and monitor.add(score):
                early += 1
                break
    assert early >= 14  # what can be seen from scores alone; brightness sees a lamp far sooner


def test_a_dimming_lamp_alarms_while_it_is_one_percent_off():
    events = uikit.Events()
    monitor = DriftMonitor([], 0.5, events, window=32)
    picture = uikit.part_picture(1)
    for n in range(1, 400):
        noise = np.random.default_rng(n).normal(1, 0.005)
        light = 1.0 if n < 100 else 1.0 - (n - 100) * 1e-4
        record = uikit.record(n, "OK", size=8)
        seen = np.clip(picture * (light * noise), 0, 255).astype(np.uint8)
        object.__setattr__(record.frame, "image", seen)
        monitor.part(record)
        if events.told:
            break
    assert "brightness of good parts drifts down" in events.told[0][2]
    assert light > 0.985


def test_scores_far_from_enrolment_alarm_within_one_window_and_the_end_is_told():
    events = uikit.Events()
    rng = np.random.default_rng(5)
    monitor = DriftMonitor(list(scores(rng, 80)), 0.5, events, window=128)
    for n, score in enumerate([*scores(rng, 64, -0.6), *scores(rng, 256)], 1):
        monitor.part(uikit.record(n, "OK", size=8, score=float(min(score, 0.5))))
    texts = [text for _, _, text in events.told]
    assert "score of good parts drifts down" in texts[0]
    assert "defects may be missed" in texts[0]
    assert any("back to normal" in text for text in texts)


def test_rejects_and_tiny_references_never_alarm():
    events = uikit.Events()
    monitor = DriftMonitor([0.1] * 4, 0.5, events, window=32)
    record = uikit.record(1, "NG", size=8)
    for _ in range(200):
        monitor.part(record)
    small = SignalMonitor("score", [0.1] * 4, 16)
    assert all(small.add(0.4) is None for _ in range(100))
    assert events.told == []


def test_each_recipe_in_use_has_its_own_monitor_and_one_taken_back_begins_anew():
    events, in_use = uikit.Events(), {"a" * 64, "b" * 64}

    def monitor(sha):
        if sha in in_use:
            return DriftMonitor([0.1 + 0.01 * n for n in range(20)], 0.5, events, window=32)
        return None

    drift = RecipeDrift(monitor)

    def show(sha, score, count):
        for n in range(1, count + 1):
            drift.part(uikit.record(n, "OK", size=8, score=score(n), recipe_sha=sha))

    rng = np.random.default_rng(1)
    show("a" * 64, lambda _n: float(rng.uniform(0.1, 0.3)), 64)
    show("b" * 64, lambda _n: float(rng.uniform(0.4, 0.5)), 64)
    assert drift.p < 1e-3 and len(events.told) == 1
    show("c" * 64, lambda _n: 0.2, 64)  # late parts of a recipe that is no longer in use
    assert len(events.told) == 1
    in_use.remove("b" * 64)
    in_use.add("c" * 64)
    show("c" * 64, lambda _n: float(rng.uniform(0.1, 0.3)), 64)
    assert drift.p > 1e-3 and len(events.told) == 1
