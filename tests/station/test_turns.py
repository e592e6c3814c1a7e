"""Several engine workers: parts overlap in the engine, verdicts come in the order of the parts."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from faultkit.engines import FakeEngine
from faultkit.station import parts_folder, results, station, until

from station.parts import Part
from station.schema import Opening, Reason, Verdict, new_id
from station.turns import ReadyQueue

TWO = {"workers": 2}


@dataclass
class UnevenEngine(FakeEngine):
    """Every other call takes ten times as long; how many calls were inside at once."""

    inside: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, tiles, group=None):
        with self.lock:
            self.calls += 1
            slow = self.calls % 2
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.02 if slow else 0.002)
        with self.lock:
            self.inside -= 1
            return FakeEngine().run(tiles, group)


@dataclass
class OnceHanging(FakeEngine):
    """The first call never comes back until released."""

    def run(self, tiles, group=None):
        self.calls += 1
        if self.calls == 1:
            self.release.wait(30)
        return FakeEngine().run(tiles, group)


def part(deadline_s: float = 5.0) -> Part:
    opening = Opening(
        trigger_id=new_id(),
        received_ns=time.monotonic_ns(),
        deadline_ms=int(deadline_s * 1000),
        t_trigger_us=1,
        threshold=0.5,
    )
    return Part(opening, "p", 1, None)


def test_two_workers_overlap_and_verdicts_keep_the_order_of_the_files(tmp_path):
    engine = UnevenEngine()
    folder = parts_folder(tmp_path / "in", 24)
    with station(tmp_path, str(folder), engine, engine_kw=TWO) as (daemon, client):
        daemon.wait()
        found = results(client)
    assert engine.most == 2
    assert [r.part_id for r in found] == [f"p{i:03d}" for i in range(24)]
    assert {r.verdict for r in found} == {Verdict.OK}


def test_a_triggered_part_has_the_engine_to_itself(tmp_path):
    engine = UnevenEngine()
    folder = parts_folder(tmp_path / "in", 3)
    source = {"spec": str(folder), "loop": True}
    by = {"by": "bus"}
    with station(tmp_path, "x", engine, engine_kw=TWO, source=source, trigger=by) as (_, client):
        for _ in range(6):
            assert client.trigger(new_id(), deadline_ms=5000).verdict is Verdict.OK
    assert engine.most == 1


def test_one_hanging_call_costs_its_own_part_and_ready_but_not_the_others(tmp_path):
    engine = OnceHanging()
    folder = parts_folder(tmp_path / "in", 4)
    quick = {"deadline_ms": 1500}
    with station(tmp_path, str(folder), engine, engine_kw=TWO, trigger=quick) as (daemon, client):
        until(lambda: len(results(client)) == 4, 20)
        assert "has not answered" in str(daemon.detector.fault())
        found = {r.part_id: r for r in results(client)}
        engine.release.set()
    late = [r for r in found.values() if r.reason is Reason.DEADLINE]
    assert [r.verdict for r in late] == [Verdict.UNDECIDED]
    assert [r.verdict for r in found.values()].count(Verdict.OK) == 3


def test_a_turn_waits_for_the_parts_of_other_workers_only():
    ready = ReadyQueue(4)
    first, second, third = part(), part(), part()
    for one in (first, second, third):
        ready.put(one)
    other = threading.Thread(target=ready.get)  # another worker takes the first and keeps it
    other.start()
    other.join()
    mine = [ready.get(), ready.get()]
    assert mine == [second, third]
    left = threading.Event()

    def leave() -> None:
        left.set()
        ready.turns.leave(first)

    threading.Timer(0.05, leave).start()
    ready.turns.wait(third)  # my own second does not hold my third up, the other's first does
    assert left.is_set()


def test_a_part_that_is_done_holds_nobody_up():
    ready = ReadyQueue(2)
    first, second = part(), part()
    ready.put(first)
    ready.put(second)
    other = threading.Thread(target=ready.get)
    other.start()
    other.join()
    ready.get()
    first.done = True
    begun = time.monotonic()
    ready.turns.wait(second)
    assert time.monotonic() - begun < 2  # of 2.5 s that it would wait at most


def test_the_real_engine_answers_equal_alone_and_beside_others():
    from engines.bundle import load_bundle
    from engines.detector import Detector
    from engines.session import thread_count

    if thread_count() < 2:
        pytest.skip("one core: nothing to share")
    bundle = load_bundle("nano")
    detector = Detector.open(bundle, "position", "ort-cpu", threads=2)
    rng = np.random.default_rng(3)
    anchors = rng.standard_normal((1, 2, bundle.manifest.embed_dim)).astype(np.float32)
    detector.bind(None, anchors)
    assert detector.crowd(2) is None
    tiles = rng.integers(0, 256, (1, 240, 240, 3), np.uint8)
    alone = detector.run(tiles)
    beside: list = []
    threads = [
        threading.Thread(target=lambda: beside.extend(detector.run(tiles) for _ in range(4)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(beside) == 12
    for answer in beside:
        assert np.array_equal(answer.score, alone.score)
        assert np.array_equal(answer.map, alone.map)
    detector.bind(None, 2 * anchors[:, ::-1])  # a new binding reaches every thread's session
    assert not np.array_equal(detector.run(tiles).map, alone.map)
