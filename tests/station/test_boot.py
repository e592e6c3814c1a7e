"""Opening engines for products: what passed its self-test is what every later opening gets."""

import pytest

from engines.detector import Detector
from engines.selftest import SelfTestReport
from station.boot import EngineRoom
from station.settings import load_settings


@pytest.fixture
def room(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    return EngineRoom(load_settings(tmp_path / "empty.toml", {}))


def test_a_second_opening_is_the_engine_that_passed_and_asks_nobody_again(room, monkeypatch):
    plain = room.bundle.engines("detector", "bank")[0]

    def fell_back(bundle, mode, _runtime, _threads):
        detector = Detector(bundle, plain, "ort-cpu", 1)
        return detector, SelfTestReport(plain.file, "fp32", "ort-cpu", 0.0, 1e-3, "int8 refused")

    monkeypatch.setattr("engines.selftest.open_verified", fell_back)
    monkeypatch.setattr(Detector, "open", lambda *_: pytest.fail("the default was opened"))
    first, second = room.detector("bank"), room.detector("bank")
    assert second.entry == first.entry == plain
    assert second.runtime == first.runtime == "ort-cpu"
