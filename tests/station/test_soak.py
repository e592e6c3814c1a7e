"""P9: it runs for ever. Memory, descriptors, threads and log of a station under steady triggers.

Everything is sampled from outside (/proc) while a PLC of bare pyzmq triggers; what the first third
of a run needs (caches, pools, the WAL) is warm-up.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faultkit.station import parts_folder

from tests.station.gatekit import ROOT, free_port
from tests.station.test_kill import Plc


@dataclass(frozen=True)
class Sample:
    """The station at one moment."""

    at_s: float
    rss_mib: float
    descriptors: int
    threads: int
    log_bytes: int


def sample(pid, log, begun):
    status = Path(f"/proc/{pid}/status").read_text().split("\n")
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    return Sample(
        time.monotonic() - begun,
        int(fields["VmRSS"].split()[0]) / 1024,
        len(list(Path(f"/proc/{pid}/fd").iterdir())),
        int(fields["Threads"]),
        log.stat().st_size,
    )


def soak(folder, seconds):
    """(samples once a second after the warm-up, verdicts heard)."""
    parts_folder(folder / "in", 8)
    pub, ctl, log = free_port(), free_port(), folder / "station.log"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "faultkit.fast_station", str(folder), str(pub), str(ctl)]
    with log.open("wb") as out:
        process = subprocess.Popen(argv, env=env, stdout=out, stderr=out)
    plc, samples = Plc(ctl), []
    try:
        assert plc.hello(60), "the station did not come up"
        begun = time.monotonic()
        while (left := begun + seconds - time.monotonic()) > 0:
            plc.run(min(1.0, left))
            samples.append(sample(process.pid, log, begun))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return samples[len(samples) // 3 :], len(plc.results)


def judge(samples, heard, figure, most_mib):
    at = np.array([s.at_s for s in samples])
    rss = np.array([s.rss_mib for s in samples])
    slope = float(np.polyfit(at, rss, 1)[0]) * 3600
    half = len(samples) // 2
    early, late = samples[:half], samples[half:]
    grown = np.median(rss[half:]) - np.median(rss[:half])
    descriptors = [max(s.descriptors for s in part) for part in (early, late)]
    threads = [max(s.threads for s in part) for part in (early, late)]
    logged = samples[-1].log_bytes - samples[0].log_bytes
    figure(
        "P9",
        f"{at[-1]:.0f} s, {heard} verdicts: memory {rss[0]:.0f} -> {rss[-1]:.0f} MiB "
        f"({slope:+.1f} MiB/h), descriptors {descriptors[0]} -> {descriptors[1]}, threads "
        f"{threads[0]} -> {threads[1]}, log +{logged} bytes",
    )
    assert heard > 20 * at[-1]
    assert grown < most_mib
    assert descriptors[1] <= descriptors[0] + 2 and threads[1] <= threads[0] + 1
    assert logged < 20_000


@pytest.mark.slow
def test_a_minute_of_triggers_leaves_the_station_as_it_was(tmp_path, figure):
    samples, heard = soak(tmp_path, 75)
    judge(samples, heard, figure, most_mib=8)


@pytest.mark.nightly
@pytest.mark.timeout(0)
def test_an_hour_of_triggers_leaves_the_station_as_it_was(tmp_path, figure):
    samples, heard = soak(tmp_path, 3600)
    judge(samples, heard, figure, most_mib=8)
