"""A verdict is heard within 1.5 ms plus the disk's own p99 fsync of the engine's answer, at 100
parts a second, with triggerer and listener in a process of their own."""

import pytest
from buskit import Disk, Jitter

from benchmarks.bus import bus_figures
from station.ledger import Ledger


@pytest.mark.slow
def test_a_verdict_is_published_soon_after_the_answer(tmp_path, figure):
    ledger = Ledger(tmp_path / "l.db", line="bench", station="st1")
    try:
        for _ in range(3):  # other work on a test machine may spoil a run, not three
            with Jitter() as jitter, Disk(tmp_path) as disk:
                figures = bus_figures(ledger, 300, 100.0)
            published = figures["published_after_answer"]
            figure(
                "P4",
                f"ledger and bus at 100 parts/s: heard {published['p50_ms']:.2f} (p99 "
                f"{published['p99_ms']:.2f}) ms after the answer; fsync of this disk p99 "
                f"{disk.p99_ms:.2f} ms, scheduler {jitter.p99_ms:.2f} ms late",
            )
            assert figures["parts"] == 300, "each verdict was heard"
            # Answer -> writer -> bus -> listener: four wake-ups, next to nothing where it is idle.
            if published["p99_ms"] <= 1.5 + disk.p99_ms + 4 * jitter.p99_ms:
                return
    finally:
        ledger.close()
    if jitter.p99_ms > 20:
        pytest.skip(f"threads wake {jitter.p99_ms:.0f} ms late: too busy to measure milliseconds")
    pytest.fail("three times later than 1.5 ms and an fsync")
