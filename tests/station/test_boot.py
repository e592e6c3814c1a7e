"""Opening engines for products: what passed its self-test is what every later opening gets."""

import pytest

from calibration.enroll import RecipeArgs, enroll
from calibration.recipe import load_recipe
from engines.detector import Detector
from engines.preprocess import Box
from engines.selftest import SelfTestReport
from station.boot import EngineRoom, _enrolled_shape
from station.settings import load_settings
from tests.calibration.doubles import BrightnessDetector, anchors, frames


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


def test_the_size_of_the_whole_frame_is_known_where_the_recipe_has_a_region(tmp_path):
    """Otherwise another lens or mode of the camera would be judged by what is under the region."""
    args = RecipeArgs(name="lid", region=Box(2, 3, 20, 16))
    shown = list(frames(30))
    enroll(shown, args, lambda _mode: BrightnessDetector(), tmp_path, anchors=anchors)
    assert _enrolled_shape(load_recipe(tmp_path, "lid")) == shown[0][1].shape[:2] != (16, 20)
