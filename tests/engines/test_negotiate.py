"""Which engine runs is decided by measurement, kept, and never includes what failed."""

import json

import pytest

from engines import negotiate as room
from engines.bundle import EngineEntry, load_bundle
from engines.errors import EngineError
from engines.negotiate import candidates, decide
from engines.session import RuntimeInfo


def entry(precision="fp32", *, default=False, passed=True, latency=10.0):
    return EngineEntry(
        file=f"detector.bank.{precision}.onnx", sha256=precision * 4, kind="detector", mode="bank",
        precision=precision, opset=20, inputs=(), outputs=(), passed=passed, default=default,
        latency_ms=latency,
    )  # fmt: skip


class FakeBundle:
    path = "a bundle"

    def __init__(self, *entries):
        self.entries = entries

    def engines(self, _kind, _mode):
        return self.entries

    def identity(self, one):
        return one.sha256


BOTH = (
    RuntimeInfo("openvino", True, "", ("fp32", "int8")),
    RuntimeInfo("ort-cpu", True, "", ("fp32", "int8")),
)


def clock_of(times):
    def clock(e, runtime):
        value = times[e.precision, runtime]
        if isinstance(value, str):
            raise EngineError(value)
        return value

    return clock


def test_candidates_are_what_passed_on_what_can_run():
    bundle = FakeBundle(entry(), entry("int8-static"), entry("fp16"), entry("int8-x", passed=False))
    absent = RuntimeInfo("ort-cuda", False, "no GPU", ("fp32", "fp16"))
    found = [(e.precision, r) for e, r in candidates(bundle, "bank", (absent, *BOTH))]
    assert found == [
        ("fp32", "openvino"), ("fp32", "ort-cpu"),
        ("int8-static", "openvino"), ("int8-static", "ort-cpu"),
    ]  # fmt: skip
    assert [r for _, r in candidates(bundle, "bank", BOTH, "fp32")] == ["openvino", "ort-cpu"]


@pytest.mark.parametrize(
    ("times", "winner"),
    [
        ({("fp32", "openvino"): 12.0, ("fp32", "ort-cpu"): 9.0}, "ort-cpu"),
        ({("fp32", "openvino"): 9.0, ("fp32", "ort-cpu"): 12.0}, "openvino"),
        ({("fp32", "openvino"): 10.0, ("fp32", "ort-cpu"): 9.8}, "openvino"),  # only noise apart
        ({("fp32", "openvino"): "self-test failed", ("fp32", "ort-cpu"): 99.0}, "ort-cpu"),
    ],
)
def test_the_fastest_that_may_be_used_wins(times, winner):
    options = candidates(FakeBundle(entry()), "bank", BOTH)
    best, tried = decide(options, clock_of(times))
    assert best.runtime == winner
    assert len(tried) == 2


def test_when_nothing_can_be_used_every_reason_is_told():
    options = candidates(FakeBundle(entry()), "bank", BOTH)
    bad = {("fp32", "openvino"): "cannot load", ("fp32", "ort-cpu"): "differs by 3"}
    with pytest.raises(EngineError, match=r"openvino: cannot load.*ort-cpu: differs by 3"):
        decide(options, clock_of(bad))


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Counts measurements; the second candidate is always faster."""
    calls = []

    def fake(_bundle, _mode):
        def clock(e, runtime):
            calls.append((e.precision, runtime))
            return 100.0 / len(calls)

        return clock

    monkeypatch.setenv("STATION_CACHE", str(tmp_path))
    monkeypatch.setattr(room, "_clock", fake)
    monkeypatch.setattr(room, "runtimes", lambda: BOTH)
    return calls


def test_a_decision_is_kept_and_measured_anew_for_other_engines(measured):
    bundle = FakeBundle(entry())
    first = room.negotiate(bundle, "bank")
    assert first.runtime == "ort-cpu"
    assert room.negotiate(bundle, "bank") == first
    assert len(measured) == 2
    room.negotiate(FakeBundle(entry(), entry("int8-static")), "bank")
    assert len(measured) == 6


def test_what_cannot_be_used_is_told_at_every_start(measured, monkeypatch):
    times = {("fp32", "openvino"): "self-test failed: map differs", ("fp32", "ort-cpu"): 9.0}
    monkeypatch.setattr(room, "_clock", lambda _bundle, _mode: clock_of(times))
    for _start in range(2):
        chosen = room.negotiate(FakeBundle(entry()), "bank")
        assert chosen.runtime == "ort-cpu"
        (told,) = chosen.refused
        assert (
            told == "detector.bank.fp32.onnx on openvino is not used: self-test failed: map differs"
        )


def test_one_candidate_is_not_measured(measured, monkeypatch):
    monkeypatch.setattr(room, "runtimes", lambda: BOTH[1:])
    assert room.negotiate(FakeBundle(entry()), "bank").runtime == "ort-cpu"
    assert measured == []


@pytest.mark.parametrize("damage", ["", "{}", '{"chosen": 3}', '{"chosen": {"file": "gone"}}'])
def test_a_damaged_record_costs_a_measurement_only(measured, tmp_path, damage):
    bundle = FakeBundle(entry())
    chosen = room.negotiate(bundle, "bank")
    (kept,) = (tmp_path / "negotiated").glob("*.json")
    assert json.loads(kept.read_text())["chosen"]["runtime"] == chosen.runtime
    kept.write_text(damage)
    assert room.negotiate(bundle, "bank").runtime in ("ort-cpu", "openvino")
    assert len(measured) == 4


def test_a_cache_that_cannot_be_written_is_no_fault(measured, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    monkeypatch.setenv("STATION_CACHE", str(file))
    assert room.negotiate(FakeBundle(entry()), "bank").runtime == "ort-cpu"


def test_a_bundle_without_the_mode_says_so(measured):
    with pytest.raises(EngineError, match="no detector for mode 'bank'"):
        room.negotiate(FakeBundle(), "bank")


def test_the_shipped_bundle_negotiates(monkeypatch, tmp_path):
    from engines.detector import Detector
    from engines.selftest import self_test

    monkeypatch.setenv("STATION_CACHE", str(tmp_path))
    bundle = load_bundle("nano")
    detector = Detector.open(bundle, "bank", threads=1)
    assert self_test(detector).max_error <= detector.entry.self_test_atol
    again = Detector.open(bundle, "bank", threads=2)  # the same engine whatever the threads
    assert (again.engine_sha, again.runtime) == (detector.engine_sha, detector.runtime)
