"""P9: it runs for ever. Memory, descriptors, threads and log under steady triggers stay flat.

Everything is sampled from outside (/proc, the station and its children together) while a PLC of
bare pyzmq triggers; what the first third of a run needs (caches, pools, the WAL) is warm-up. Each
run leaves its samples in `samples.csv`, written as they are taken: a soak can be looked at.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest
from faultkit.camera import FaultCamera
from faultkit.station import parts_folder

from tests.station.gatekit import Program, free_port
from tests.station.linekit import LINEKIT, children, sections
from tests.station.test_kill import Plc

LONG_S = int(os.environ.get("SOAK_S", "3600"))  # the figure tells how long it was
PAUSE_S = 3.0  # a second that took longer: the whole group was stopped (other work is measured)


@dataclass(frozen=True)
class Sample:
    """The station and its children at one moment of the time they could run."""

    at_s: float
    memory_mib: float  # resident; pages shared by n processes count 1/n
    private_mib: float  # of it: what no file backs (heap, stacks, shared rings)
    descriptors: float  # a count, as the next two
    threads: float
    log_bytes: float


def sample(pid, log, at_s):
    """None when a child ended while it was looked at (it is replaced by another)."""
    try:
        found = [_of_process(one) for one in (pid, *children(pid))]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Sample(at_s, *np.sum(found, axis=0).tolist(), log.stat().st_size)


def _of_process(pid):
    proc = Path(f"/proc/{pid}")
    lines = (proc / "smaps_rollup").read_text() + (proc / "status").read_text()
    fields = dict(line.split(":", 1) for line in lines.split("\n") if ":" in line)
    whole, *own = (int(fields[key].split()[0]) / 1024 for key in ("Pss", "Pss_Anon", "Pss_Shmem"))
    return whole, sum(own), len(list((proc / "fd").iterdir())), int(fields["Threads"])


@contextmanager
def only_the_station(folder, ctl) -> Iterator[Program]:
    """Ledger, bus and an engine of 2 ms on a folder of pictures, eight parts in flight."""
    parts_folder(folder / "in", 8)
    words = ("-m", "faultkit.fast_station", folder, free_port(), ctl)
    with Program(*words, log=folder / "station.log") as program:
        yield program


@contextmanager
def with_all_its_children(folder, ctl) -> Iterator[Program]:
    """A live camera in its child, the describer's child, and a recorder that must clear up."""
    settings = sections(ctl, free_port(), folder)
    settings["record"] |= {
        "file_bytes": 8 << 20,
        "budget_ok_bytes": 24 << 20,
        "budget_not_ok_bytes": 24 << 20,
    }
    with FaultCamera(fps=30) as camera:
        words = (LINEKIT, folder, camera.url, json.dumps(settings))
        with Program(*words, log=folder / "station.log") as program:
            yield program


STATIONS = {"station": (only_the_station, 80), "line": (with_all_its_children, 12)}


def soak(folder, seconds, what):
    """(samples once a second after the warm-up, verdicts heard)."""
    begin, rate = STATIONS[what]
    ctl, log, samples = free_port(), folder / "station.log", []
    with begin(folder, ctl) as program, (folder / "samples.csv").open("w", buffering=1) as table:
        table.write(",".join(Sample.__dataclass_fields__) + "\n")
        plc = Plc(ctl, rate)
        assert plc.hello(120), "the station did not come up"
        at_s = 0.0
        while at_s < seconds:
            begun = time.monotonic()
            plc.run(min(1.0, seconds - at_s))
            took = time.monotonic() - begun
            at_s += took if took < PAUSE_S else 1.0
            if (taken := sample(program.process.pid, log, at_s)) is not None:
                samples.append(taken)
                table.write(",".join(f"{value:.10g}" for value in astuple(taken)) + "\n")
        program.process.send_signal(signal.SIGTERM)
        program.process.wait(30)
    return samples[len(samples) // 3 :], len(plc.results), rate


def judge(taken, figure, what, most_mib):
    samples, heard, rate = taken
    at = np.array([s.at_s for s in samples])
    memory = np.array([s.memory_mib for s in samples])
    # A file's pages count by the processes that share them, of other programs, too: what ends
    # elsewhere looks like growth here. So growth is judged by what is the station's own.
    private = np.array([s.private_mib for s in samples])
    half = len(samples) // 2
    slope = float(np.polyfit(at, private, 1)[0]) * 3600
    late = float(np.polyfit(at[half:], private[half:], 1)[0]) * 3600
    grown = np.median(private[half:]) - np.median(private[:half])
    first, second = samples[:half], samples[half:]
    descriptors = [max(s.descriptors for s in part) for part in (first, second)]
    threads = [max(s.threads for s in part) for part in (first, second)]
    logged = samples[-1].log_bytes - samples[0].log_bytes
    figure(
        "P9",
        f"{what}: {at[-1]:.0f} s, {heard} verdicts: memory {memory[0]:.0f} -> {memory[-1]:.0f} "
        f"MiB, its own {private[0]:.1f} -> {private[-1]:.1f} (after a third as warm-up "
        f"{slope:+.1f} MiB/h, of that the second half {late:+.1f}), "
        f"descriptors {descriptors[0]:.0f} -> {descriptors[1]:.0f}, threads {threads[0]:.0f} -> "
        f"{threads[1]:.0f}, log +{logged:.0f} bytes",
    )
    assert heard > rate / 4 * at[-1]
    assert grown < most_mib
    assert descriptors[1] <= descriptors[0] + 2 and threads[1] <= threads[0] + 1
    assert logged < 20_000


@pytest.mark.slow
def test_a_minute_of_triggers_leaves_the_station_as_it_was(tmp_path, figure):
    judge(soak(tmp_path, 75, "station"), figure, "station", most_mib=8)


@pytest.mark.nightly
@pytest.mark.timeout(0)
@pytest.mark.parametrize("what", STATIONS)
def test_an_hour_of_triggers_leaves_the_station_as_it_was(tmp_path, figure, what):
    judge(soak(tmp_path, LONG_S, what), figure, what, most_mib=8)
