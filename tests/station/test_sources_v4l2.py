"""A USB camera (V4L2) through the real OpenCV, the driver alone is a double (`faultkit/v4l2.c`).

What no double can show is a real driver's own faults; what OpenCV asks a driver for, and what the
station makes of its answers, is what runs here.
"""

import subprocess
import sys
from itertools import pairwise

import cv2
import numpy as np
import pytest
from faultkit.camera import damage
from faultkit.station import GOOD, show, station, until
from faultkit.v4l2 import NAME, FakeV4l2, build_driver

from engines.errors import SourceError
from station.schema import Reason, Verdict
from station.settings import SourceSettings
from station.sources.base import open_source
from station.sources.decode import decoded
from tests.station.gatekit import ROOT

EXPOSURE, GAIN = 0x009A0902, 0x00980913  # V4L2_CID_EXPOSURE_ABSOLUTE, V4L2_CID_GAIN
AUTO_EXPOSURE = 0x009A0901  # V4L2_CID_EXPOSURE_AUTO


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    found = build_driver(tmp_path_factory.mktemp("v4l2"))
    if found is None:
        pytest.skip("no C compiler or no kernel headers: the V4L2 double cannot be built")
    return found


@pytest.fixture
def camera(driver):
    with FakeV4l2(driver) as made:
        yield made


def opened(camera, **settings):
    source = open_source(camera.spec, SourceSettings(spec=camera.spec, **settings))
    source.open()
    return source


def frames(source, count):
    found = []
    until(lambda: ((frame := source.read(0.5)) and found.append(frame)) or len(found) >= count, 30)
    return found


def test_its_stable_name_opens_it_and_its_own_bytes_arrive_in_order(camera):
    source = opened(camera, width=320, height=240, fps=25)
    try:
        found = frames(source, 8)
    finally:
        source.close()
    shown = [camera.pictures.index(frame.raw) for frame in found]
    steps = [(b - a) % len(camera.pictures) for a, b in pairwise(shown)]
    assert all(0 < step < 16 for step in steps), steps  # what a slow reader misses is dropped
    assert found[0].name.startswith(NAME + "#") and decoded(found[0]).image.shape == (240, 320, 3)
    assert found[0].t_capture_ns < found[1].t_capture_ns


def test_a_camera_without_mjpg_gives_its_pixels(driver):
    made = [np.random.default_rng(n).integers(60, 180, (240, 320, 2), np.uint8) for n in range(4)]
    with FakeV4l2(driver, "YUYV", [one.tobytes() for one in made]) as camera:
        source = opened(camera, width=320, height=240)
        try:
            image = frames(source, 1)[0].image
        finally:
            source.close()
    assert any(np.array_equal(image, cv2.cvtColor(one, cv2.COLOR_YUV2BGR_YUYV)) for one in made)


@pytest.mark.parametrize("what", ["truncate", "empty"])
def test_a_bad_picture_is_a_fault_and_never_the_picture_before(camera, what):
    bad = damage(camera.pictures[5], "truncate", 5) if what == "truncate" else b""
    camera.show(5, bad)
    source = opened(camera, width=320, height=240, fps=60)
    try:
        found = frames(source, 2 * len(camera.pictures))
    finally:
        source.close()
    faulty = [frame for frame in found if frame.fault]
    assert faulty and all(what in frame.fault for frame in faulty)
    assert all(decoded(frame).image is None for frame in faulty)
    assert all(frame.raw in camera.pictures for frame in found if not frame.fault)


def test_bits_that_libjpeg_complains_of_are_a_fault(camera):
    """The markers are whole, the codes between them are not."""
    rng = np.random.default_rng(1)
    for number, good in enumerate(camera.pictures):
        bad = bytearray(good)
        for at in rng.integers(len(good) // 2, len(good) - 4, 12):
            bad[at] = int(rng.integers(0, 255))  # never ff: that would be a marker
        camera.show(number, bytes(bad))
    source = opened(camera, width=320, height=240, fps=60)
    try:
        found = frames(source, len(camera.pictures))
    finally:
        source.close()
    told = [frame.fault for frame in found if frame.fault]
    assert len(told) >= len(found) // 4 and any("JPEG" in fault for fault in told), told


def test_controls_are_set_before_the_first_frame_and_read_back(camera):
    wanted = {"exposure": 120, "auto_exposure": 1, "gain": 20}  # in this order: automatics first
    source = opened(camera, controls=wanted)
    try:
        until(lambda: source.health().ok, 30)
        assert camera.controls()[EXPOSURE] == 120 and camera.controls()[GAIN] == 20
    finally:
        source.close()


def test_other_controls_are_set_by_a_new_child_and_read_back_before_ready(camera):
    source = opened(camera, controls={"exposure": 120, "auto_exposure": 1})
    try:
        until(lambda: source.health().ok, 30)
        pid = source.pid
        source.tune({"exposure": 300, "auto_exposure": 1})
        assert "its controls are being set" in source.health().fault
        until(lambda: source.health().ok, 30)
        assert camera.controls()[EXPOSURE] == 300 and source.pid != pid
        until(lambda: source.read(0.5) is not None, 30)
        source.tune({})
        until(lambda: source.health().ok and camera.controls()[AUTO_EXPOSURE] == 3, 30)  # as before
        source.tune({"exposure": 300, "auto_exposure": 1, "gain": 500})
        until(lambda: "gain is 100, not 500" in (source.health().fault or ""), 30)
    finally:
        source.close()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"controls": {"gain": 500}}, "gain is 100, not 500"),
        ({"controls": {"exposure": 120}}, "exposure is 250, not 120"),  # it exposes by itself
        ({"controls": {"focus": 10}}, "focus is -1, not 10"),
        ({"controls": {"shutter": 3}}, "'shutter' is not known"),
        ({"width": 1000}, "width 640 not 1000"),
    ],
)
def test_what_the_camera_does_not_take_on_blocks_ready(camera, settings, told):
    source = opened(camera, **settings)
    try:
        frames(source, 2)
        assert not source.health().ok and told in source.health().fault
    finally:
        source.close()


def test_a_camera_in_use_and_one_that_is_not_there_are_told_so(camera):
    camera.mode("busy")
    with pytest.raises(SourceError, match="in use"):
        opened(camera)
    camera.mode("gone")
    with pytest.raises(SourceError, match="does not exist"):
        opened(camera)


def test_parts_are_judged_and_a_frozen_stalled_or_unplugged_camera_is_never_ok(camera, tmp_path):
    size = {"width": 320, "height": 240, "fps": 20}
    with station(tmp_path, camera.spec, trigger={"by": "bus"}, source=size) as (daemon, client):
        until(lambda: show(client) == GOOD, 60)
        assert [show(client) for _ in range(5)] == [GOOD] * 5
        camera.mode("freeze")
        until(lambda: show(client) == (Verdict.ERROR, Reason.STALE_FRAME), 30)
        assert {show(client) for _ in range(5)} == {(Verdict.ERROR, Reason.STALE_FRAME)}
        for mode in ("stall", "gone"):
            camera.mode(mode)
            until(lambda: not daemon.readiness.evaluate()[0], 30)
            assert GOOD not in [show(client) for _ in range(3)]
            camera.mode("ok")
            until(lambda: show(client) == GOOD, 60)


DOCTOR = """
import sys
from pathlib import Path
from station import doctor_cameras
from station.settings import Settings
doctor_cameras.DEV = Path(sys.argv[1])
print(*doctor_cameras.cameras(Settings(source={"spec": sys.argv[2]})), sep="\\n")
"""


def test_the_doctor_lists_it_by_its_stable_name_with_what_it_offers(camera):
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR, str(camera.folder), camera.spec],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, last = done.stdout.splitlines()
    assert camera.spec in first and "Fake camera: MJPG up to 640x480 (2 sizes)" in first
    assert "is there" in last
