"""Golden parts: known good and bad pictures that must still get their verdicts."""

import cv2
import pytest
import uikit

from station.drift_golden import GoldenSchedule, check, golden_parts
from station.schema import Verdict


@pytest.fixture
def folder(tmp_path):
    for name, defect in (("good", None), ("bad", (320, 170))):
        (tmp_path / name).mkdir()
        for n in range(2):
            cv2.imwrite(str(tmp_path / name / f"{name}{n}.png"), uikit.part_picture(n, defect))
    return tmp_path


def eye(image):
    """Sees the pit: dark where the disc is bright."""
    return Verdict.NG if image[165:175, 315:325].mean() < 100 else Verdict.OK


def test_right_verdicts_are_no_fault(folder):
    report = check(folder, eye)
    assert report.checked == 4
    assert report.fault is None


@pytest.mark.parametrize(
    ("verdict", "count"), [(Verdict.OK, 2), (Verdict.NG, 2), (Verdict.UNDECIDED, 4)]
)
def test_a_station_that_says_the_same_of_everything_is_not_ready(folder, verdict, count):
    report = check(folder, lambda image: verdict)
    assert len(report.wrong) == count
    assert f"{count} of 4 wrong" in report.fault


def test_an_unreadable_golden_part_proves_nothing(folder):
    (folder / "good" / "zz.png").write_bytes(b"no picture")
    assert "zz.png is known good and was unreadable" in check(folder, eye).fault


def test_no_golden_folder_is_no_check(tmp_path):
    assert golden_parts(tmp_path) == []
    assert check(tmp_path, eye).fault is None


def test_the_schedule_waits_for_a_quiet_moment_but_not_for_ever():
    clock = uikit.Clock()
    schedule = GoldenSchedule(60, clock)
    assert schedule.due()
    schedule.done()
    assert not schedule.due()
    clock.now += 61
    assert schedule.due()
    assert not schedule.overdue()
    clock.now += 60
    assert schedule.overdue()
    schedule.done()
    schedule.at_once()
    assert schedule.due()
