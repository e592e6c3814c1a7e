"""P3: no fault ever yields OK, and each has its reason. 10 parts each; slow: 100 each."""

import threading
import time
from collections import Counter

import pytest
from buskit import Disk, Jitter
from faultkit.camera import FaultCamera
from faultkit.engines import FakeEngine
from faultkit.station import crowded, parts_folder, results, station, until

from station.client import Client, NoAnswer, Refused
from station.schema import Reason, Verdict, new_id

COUNTS = [10, pytest.param(100, marks=pytest.mark.slow)]
GOOD = [(Verdict.OK, Reason.SCORE)]
SHAPE = {"recipe_kw": {"shape": (240, 320)}}
TRIGGERED = {"trigger": {"by": "bus"}}


def told(figure, fault, found):
    """The figure of one fault: how many parts, how many of them OK, what they became."""
    seen = Counter(f"{verdict} {reason or ''}".strip() for verdict, reason in found)
    said = ", ".join(f"{count} {name}" for name, count in seen.most_common())
    figure("P3", f"{fault}: {len(found)} parts: {said}")


def show(client, count, deadline_ms=4000):
    """Trigger `count` parts; what each became, "not_ready" and the like where none was accepted."""
    found = []
    while len(found) < count:
        try:
            result = client.trigger(new_id(), deadline_ms=deadline_ms)
            found.append((result.verdict, result.reason))
        except Refused as refused:
            found.append((str(refused.reply.reply), None))
            time.sleep(0.005)
    return found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("mode", "verdict", "reason"),
    [
        ("freeze", Verdict.ERROR, Reason.STALE_FRAME),
        ("truncate", Verdict.ERROR, Reason.CAMERA),
        ("corrupt", Verdict.ERROR, Reason.CAMERA),
        ("no_eoi_data", Verdict.ERROR, Reason.CAMERA),
        ("size", Verdict.ERROR, Reason.CAMERA),
        ("black", Verdict.UNDECIDED, Reason.IMPLAUSIBLE_FRAME),
        ("white", Verdict.UNDECIDED, Reason.IMPLAUSIBLE_FRAME),
    ],
)
def test_a_camera_that_lies_never_gets_ok(tmp_path, mode, verdict, reason, count, figure):
    with (
        FaultCamera(fps=80) as camera,
        station(tmp_path, camera.url, **TRIGGERED, **SHAPE) as (_, client),
    ):
        until(lambda: show(client, 1) == GOOD)
        camera.mode = mode
        # Pictures that were good when they were sent may still be on their way.
        until(lambda: show(client, 1) != GOOD)
        found = show(client, count)
        camera.mode = "ok"
        until(lambda: show(client, 1) == GOOD)
        healed = show(client, 3)
    told(figure, f"camera {mode}", found)
    assert set(found) == {(verdict, reason)}
    assert set(healed) == {(Verdict.OK, Reason.SCORE)}


@pytest.mark.parametrize("count", COUNTS)
def test_repeated_frames_are_stale_and_the_others_are_judged(tmp_path, count, figure):
    with (
        FaultCamera(fps=80) as camera,
        station(tmp_path, camera.url, **TRIGGERED, **SHAPE) as (_, client),
    ):
        camera.mode = "repeat"
        time.sleep(0.15)
        found: list = []
        while len(found) < count or ((Verdict.ERROR, Reason.STALE_FRAME) not in found):
            time.sleep(len(found) % 5 * 0.005)  # out of step with the camera
            found += show(client, 1)
            assert len(found) < 20 * count, "never a repeat"
    told(figure, "every second frame twice (new ones are good)", found)
    assert set(found) <= {(Verdict.OK, Reason.SCORE), (Verdict.ERROR, Reason.STALE_FRAME)}
    assert (Verdict.ERROR, Reason.STALE_FRAME) in found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("mode", ["stall", "drop"])
def test_a_camera_that_is_gone_gives_errors_then_not_ready_then_verdicts_again(
    tmp_path, mode, count, figure
):
    with (
        FaultCamera(fps=80) as camera,
        station(tmp_path, camera.url, **TRIGGERED, **SHAPE) as (daemon, client),
    ):
        until(lambda: show(client, 1) == GOOD)
        camera.mode = mode
        until(lambda: show(client, 1, deadline_ms=200) != GOOD)
        found = show(client, count, deadline_ms=200)
        until(lambda: not daemon.readiness.evaluate()[0])
        found += show(client, 3)
        camera.mode = "ok"
        back = until(lambda: daemon.readiness.evaluate()[0])
        healed = show(client, 3)
    told(figure, f"camera {mode} (READY {back:.2f} s after its return)", found)
    allowed = {
        (Verdict.ERROR, Reason.CAMERA),
        (Verdict.UNDECIDED, Reason.DEADLINE),
        ("not_ready", None),
    }
    assert set(found) <= allowed
    assert found[-1] == ("not_ready", None)
    assert set(healed) == {(Verdict.OK, Reason.SCORE)}


def now_and_then(client, count, turn, **how):
    """`count` parts judged while the fault is there (`turn(True)`), a good one after each: so the
    station stays READY and each faulty part is accepted."""
    found = []
    while len(found) < count:
        until(lambda: show(client, 1) == GOOD)
        turn(True)
        found += show(client, 1, **how)
        turn(False)
    return found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("raise", Reason.INFER), ("nan", Reason.NOT_FINITE), ("inf", Reason.NOT_FINITE)],
)
def test_an_engine_that_lies_never_gets_ok(tmp_path, fault, reason, count, figure):
    """All the time, and now and then."""
    folder = parts_folder(tmp_path / "in", 4)
    engine = FakeEngine(fault=fault)
    with station(tmp_path, str(folder), engine, source={"loop": True}, **TRIGGERED) as (_, client):
        always = show(client, 10)  # soon nothing is accepted any more
        engine.fault = ""
        found = now_and_then(client, count, lambda wrong: setattr(engine, "fault", wrong * fault))
    told(figure, f"engine {fault}", found)
    assert set(always) <= {(Verdict.ERROR, reason), ("not_ready", None)}
    assert always.count((Verdict.ERROR, reason)) >= 3
    assert set(found) == {(Verdict.ERROR, reason)}


@pytest.mark.parametrize("count", COUNTS)
def test_an_engine_slower_than_the_deadline_is_undecided_and_never_acted_on(
    tmp_path, count, figure
):
    folder = parts_folder(tmp_path / "in", 4)
    engine = FakeEngine(delay_s=0.06)
    with station(tmp_path, str(folder), engine, source={"loop": True}, **TRIGGERED) as (_, client):
        always = show(client, 10, deadline_ms=30)
        engine.delay_s = 0.0
        found = now_and_then(
            client, count, lambda wrong: setattr(engine, "delay_s", wrong * 0.06), deadline_ms=30
        )
    told(figure, "engine slower than the deadline", found)
    assert set(always) <= {(Verdict.UNDECIDED, Reason.DEADLINE), ("not_ready", None)}
    assert (Verdict.UNDECIDED, Reason.DEADLINE) in always
    assert set(found) == {(Verdict.UNDECIDED, Reason.DEADLINE)}


@pytest.mark.parametrize("count", COUNTS)
def test_a_wall_clock_that_jumps_changes_no_verdict(tmp_path, monkeypatch, count, figure):
    """The deadline is monotonic: wall time is a label, wherever it jumps."""
    folder = parts_folder(tmp_path / "in", 4)
    real, calls = time.time_ns, iter(range(1 << 30))
    with station(tmp_path, str(folder), source={"loop": True}, **TRIGGERED) as (_, client):
        jumps = (0, 86_400_000_000_000, -86_400_000_000_000)
        monkeypatch.setattr(time, "time_ns", lambda: real() + jumps[next(calls) % 3])
        found = show(client, count)
    told(figure, "wall clock jumps by a day (parts are good)", found)
    assert set(found) == {(Verdict.OK, Reason.SCORE)}


@pytest.mark.parametrize("stalls", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_stall_shows_on_the_bus_within_its_limit_and_verdicts_come_back(tmp_path, stalls, figure):
    """P5: READY=0 within max(3 periods, 250 ms) of the last frame, verdicts within 10 s."""
    noticed, healed = [], []
    with (
        Jitter() as jitter,
        FaultCamera(fps=50) as camera,
        station(tmp_path, camera.url, **TRIGGERED, **SHAPE) as (daemon, client),
        Client(daemon.bus.ctl_address, daemon.bus.pub_address, name="eye") as eye,
    ):
        states = (s.ready for s in eye.subscribe(("status",), None, 5) if s is not None)
        for _ in range(stalls):
            assert next(state for state in states if state)
            camera.mode = "stall"
            start = time.monotonic()
            assert not next(state for state in states if not state)
            noticed.append(time.monotonic() - max(start, camera.last_sent_s))
            camera.mode = "ok"
            start = time.monotonic()
            until(lambda: show(client, 1) == [(Verdict.OK, Reason.SCORE)], 10)
            healed.append(time.monotonic() - start)
    noticed.sort()
    figure(
        "P5",
        f"{stalls} stalls: READY=0 on the bus after p50 {noticed[len(noticed) // 2] * 1e3:.0f} ms, "
        f"max {noticed[-1] * 1e3:.0f} ms; verdict again after at most {max(healed):.2f} s "
        f"(this scheduler wakes up to {jitter.p99_ms:.1f} ms late)",
    )
    # Frame -> child -> pump -> watchdog -> bus -> listener: six wake-ups as late as this machine's.
    allowed = 0.25 + 6 * jitter.p99_ms / 1e3
    if stalls == 50:
        assert noticed[len(noticed) // 2] < allowed
        assert noticed[-1] < (2.0 if crowded() else allowed)


def test_a_full_disk_sends_nothing_is_not_ready_and_heals(tmp_path):
    folder = parts_folder(tmp_path / "in", 4)
    looped = {"source": {"loop": True}, **TRIGGERED}
    with station(tmp_path, str(folder), **looped) as (daemon, client):
        assert show(client, 1) == [(Verdict.OK, Reason.SCORE)]
        found, faults = [], []
        for _ in range(40):
            fill_the_disk(daemon.ledger)
            try:
                found.append(client.trigger(new_id(), timeout_s=0.5).verdict)
            except (Refused, NoAnswer) as error:
                faults.append(type(error).__name__)
                break
        assert faults, "the disk never filled"
        assert len(results(client)) >= len(found)  # nothing was told that is not in the ledger
        until(lambda: daemon.readiness.evaluate()[0], 10)
        assert show(client, 1) == [(Verdict.OK, Reason.SCORE)]
        said = {r.trigger_id: r for r in results(client)}
    assert {r.verdict for r in said.values()} <= {Verdict.OK, Verdict.ERROR}


def fill_the_disk(ledger):
    """SQLITE_FULL from now on: the file may not grow by one page."""

    def limit(store):
        pages = store.db.execute("PRAGMA page_count").fetchone()[0]
        store.db.execute(f"PRAGMA max_page_count={pages}")
        return True

    ledger._read(limit).result(5)


@pytest.mark.slow
def test_a_verdict_is_published_soon_after_the_engines_answer(tmp_path, figure):
    """At 100 parts/s: p99 within 1.5 ms plus the disk's own p99 fsync of the same minute."""
    for attempt in range(3):  # other work on a test machine may spoil a run, not three
        (tmp_path / str(attempt)).mkdir()
        with Jitter() as jitter, Disk(tmp_path) as disk:
            waits = published_after(tmp_path / str(attempt))
        p50, p99 = waits[len(waits) // 2], waits[int(0.99 * len(waits))]
        figure(
            "P4",
            f"whole station at 100 parts/s: heard p50 {p50:.2f}, p99 {p99:.2f} ms after the "
            f"engine's answer; fsync of this disk p99 {disk.p99_ms:.2f} ms, scheduler "
            f"{jitter.p99_ms:.2f} ms late",
        )
        assert len(waits) > 300
        if p99 <= 1.5 + disk.p99_ms + 4 * jitter.p99_ms:
            return
    pytest.fail("three times later than 1.5 ms and an fsync")


def published_after(folder):
    """Milliseconds from each answer of the engine to the listener, sorted."""
    parts = parts_folder(folder / "in", 8)
    engine, heard, stop = StampingEngine(), [], threading.Event()
    with (
        station(folder, str(parts), engine, source={"loop": True, "fps": 100}) as (daemon, _),
        Client(daemon.bus.ctl_address, daemon.bus.pub_address, name="eye") as eye,
    ):

        def listen():
            for body in eye.subscribe(("result",), None, 1):
                if body is not None and str(body.stream) == "result":
                    heard.append((body.seq, time.monotonic_ns()))
                if stop.is_set():
                    return

        ear = threading.Thread(target=listen)
        ear.start()
        time.sleep(5)
        stop.set()
        ear.join(3)
    answered = engine.answered
    return sorted((at - answered[seq - 1]) / 1e6 for seq, at in heard if seq <= len(answered))


class StampingEngine(FakeEngine):
    """Notes the monotonic time of each answer."""

    def __init__(self) -> None:
        super().__init__(delay_s=0.002)
        self.answered: list[int] = []

    def run(self, tiles, group=None):
        answer = super().run(tiles, group)
        self.answered.append(time.monotonic_ns())
        return answer
