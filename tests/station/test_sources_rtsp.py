"""A camera over RTSP (Motion JPEG in RTP, read by OpenCV's FFMPEG): judged, stalled, lost, back."""

import pytest
from faultkit.rtsp import RtspCamera
from faultkit.station import GOOD, show, station, until


@pytest.fixture
def line(tmp_path):
    with (
        RtspCamera(fps=20) as camera,
        station(
            tmp_path,
            camera.url,
            trigger={"by": "bus"},
            recipe_kw={"shape": (240, 320)},
        ) as (daemon, client),
    ):
        yield camera, daemon, client


def test_parts_over_rtsp_are_judged_each_with_a_frame_of_its_own(line):
    camera, _, client = line
    until(lambda: show(client) == GOOD, 60)
    before = camera.sent
    found = [show(client) for _ in range(10)]
    assert found == [GOOD] * 10 and camera.sent > before


@pytest.mark.parametrize("mode", ["stall", "drop"])
def test_a_lost_rtsp_camera_is_not_ready_never_ok_and_comes_back(line, mode):
    camera, daemon, client = line
    until(lambda: show(client) == GOOD, 60)
    camera.mode = mode
    until(lambda: not daemon.readiness.evaluate()[0], 30)
    # FFMPEG may still hold frames of before: none of them is younger than its trigger.
    assert GOOD not in [show(client) for _ in range(5)]
    camera.mode = "ok"
    until(lambda: show(client) == GOOD, 60)
