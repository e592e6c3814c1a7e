"""A verdict is heard within 1.5 ms plus the disk's own p99 fsync of the engine's answer, at 100
parts a second, with triggerer and listener in a process of their own."""

import pytest

from benchmarks.bus import bus_figures, fsync_times, percentiles
from station.ledger import Ledger


@pytest.mark.slow
def test_a_verdict_is_published_soon_after_the_answer(tmp_path):
    ledger = Ledger(tmp_path / "l.db", line="bench", station="st1")
    before = fsync_times(tmp_path, 150)
    figures = bus_figures(ledger, 500, 100.0)
    disk = percentiles(before + fsync_times(tmp_path, 150))
    ledger.close()
    published = figures["published_after_answer"]
    print(f"published after the answer: {published}; fsync of this disk now: {disk}")
    assert figures["parts"] == 500, "each verdict was heard"
    assert published["p50_ms"] <= 1.5 + disk["p99_ms"]
    # A machine that is busy with other things delays threads by its scheduler, not by our code:
    # the tail is held to the bound with one scheduler slice of slack.
    assert published["p99_ms"] <= 1.5 + disk["p99_ms"] + 10.0
