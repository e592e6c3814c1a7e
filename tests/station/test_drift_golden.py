"""Golden parts: known good and bad pictures that must still get their verdicts."""

from types import SimpleNamespace

import cv2
import pytest
import uikit

from station.drift_golden import GoldenSchedule, check, golden_parts
from station.golden import GoldenWatch
from station.schema import Verdict
from station.settings import GoldenSettings


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


def report_of(folder, judge):
    """A whole check: what its last step returns."""
    steps = check(folder, judge)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return ended.value


def test_right_verdicts_are_no_fault(folder):
    report = report_of(folder, eye)
    assert report.checked == 4
    assert report.fault is None


@pytest.mark.parametrize(
    ("verdict", "count"), [(Verdict.OK, 2), (Verdict.NG, 2), (Verdict.UNDECIDED, 4)]
)
def test_a_station_that_says_the_same_of_everything_is_not_ready(folder, verdict, count):
    report = report_of(folder, lambda image: verdict)
    assert len(report.wrong) == count
    assert f"{count} of 4 wrong" in report.fault


def test_an_unreadable_golden_part_proves_nothing(folder):
    (folder / "good" / "zz.png").write_bytes(b"no picture")
    assert "zz.png is known good and was unreadable" in report_of(folder, eye).fault


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("no tiles")])
def test_a_golden_part_that_cannot_be_judged_is_wrong_and_ends_nothing(folder, error):
    def fail(_image):
        raise error

    report = report_of(folder, fail)
    assert (report.checked, len(report.wrong)) == (4, 4)
    (folder / "good" / "dir.png").mkdir()
    assert (
        "dir.png is known good and was unreadable (Is a directory)" in report_of(folder, eye).fault
    )


class Shop:
    """A golden watch over one product whose engine is a function."""

    def __init__(self, folder, monkeypatch, verdict):
        (folder / "lid").mkdir()
        for name in ("good", "bad"):
            (folder / name).rename(folder / "lid" / name)
        product = SimpleNamespace(sha="1", name="lid", loaded=object())
        monkeypatch.setattr("station.golden.judge_picture", lambda image, product: verdict(image))
        self.faults, self.events = [], uikit.Events()
        settings = GoldenSettings(folder=folder, every_s=60)
        self.watch = GoldenWatch(settings, lambda: [product], self.faults.append, self.events)


def test_a_check_goes_one_picture_a_look_so_that_the_heartbeat_never_waits(folder, monkeypatch):
    judged = []
    shop = Shop(folder, monkeypatch, lambda image: judged.append(1) or eye(image))
    for pictures in (1, 2, 3, 4, 4):
        shop.watch.look(idle=True)
        assert len(judged) == pictures
    assert shop.faults == [None]
    shop.watch.look(idle=True)
    assert len(judged) == 4, "the next check is not due"


def test_a_reset_has_the_golden_parts_judged_again_at_once(folder, monkeypatch):
    verdict = [Verdict.UNDECIDED]
    shop = Shop(folder, monkeypatch, lambda image: verdict[0] or eye(image))
    for _look in range(6):
        shop.watch.look(idle=True)
    assert "4 of 4 wrong" in shop.faults[-1]
    verdict[0] = None
    shop.watch.at_once()
    for _look in range(6):
        shop.watch.look(idle=True)
    assert shop.faults[-1] is None


def test_a_check_that_fails_altogether_takes_ready_once_a_period(folder, monkeypatch):
    shop = Shop(folder, monkeypatch, eye)
    monkeypatch.setattr("station.golden.check", lambda *_: (_ for _ in ()).throw(OSError(13, "no")))
    for _look in range(5):
        shop.watch.look(idle=True)
    assert len(shop.faults) == 1 and "could not be checked" in shop.faults[0]
    assert shop.events.kinds() == ["golden_failed"]


def test_no_golden_folder_is_no_check(tmp_path):
    assert golden_parts(tmp_path) == []
    assert report_of(tmp_path, eye).fault is None


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
