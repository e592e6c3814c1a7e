"""`station record`: frames without verdicts, and that they can be replayed."""

import cv2
import numpy as np
import pytest
import uikit
from typer.testing import CliRunner

from engines.errors import LedgerError, UsageError
from station.record_cli import app, record
from station.record_reader import McapSource
from station.settings import SourceSettings
from station.sources.base import EndOfSource
from station.sources.decode import decoded
from station.sources.folder import FolderSource


def folder(tmp_path, count=5):
    parts = tmp_path / "parts"
    parts.mkdir()
    for n in range(count):
        cv2.imwrite(str(parts / f"{n:03d}.png"), uikit.part_picture(n)[::4, ::4])
    return parts


def source(parts):
    return FolderSource(parts, SourceSettings(spec=str(parts)))


def test_a_recorded_folder_comes_back_frame_by_frame(tmp_path):
    report = record(source(folder(tmp_path)), tmp_path / "a.mcap", None, {"line": "l"})
    assert (report.frames, report.faults) == (5, 0)
    replayed = McapSource(tmp_path / "a.mcap")
    replayed.open()
    for n in range(5):
        frame = replayed.read(1.0)
        assert np.array_equal(decoded(frame).image, uikit.part_picture(n)[::4, ::4])
        assert replayed.verdict(frame.index) == {}
    with pytest.raises(EndOfSource):
        replayed.read(1.0)
    assert replayed.metadata["station"]["line"] == "l"


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "a.mcap").touch()
    with pytest.raises(UsageError, match="exists already"):
        record(source(folder(tmp_path)), tmp_path / "a.mcap", None, {})


def test_a_failing_disk_names_what_is_left(tmp_path, monkeypatch):
    def fail(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("station.record_stream.os.fdatasync", fail)
    with pytest.raises(LedgerError, match=r"a\.mcap: No space left.*a\.mcap\.part"):
        record(source(folder(tmp_path)), tmp_path / "a.mcap", None, {})


@pytest.mark.parametrize("seconds", ["-5", "0", "nan", "inf"])
def test_a_time_that_makes_no_sense_is_refused_and_nothing_is_made(tmp_path, seconds):
    words = ["--out", str(tmp_path / "b.mcap"), "--source", str(folder(tmp_path))]
    with pytest.raises(UsageError, match="--seconds"):
        CliRunner().invoke(app, [*words, "--seconds", seconds], catch_exceptions=False)
    assert not list(tmp_path.glob("*.mcap*"))


def test_the_command_records_and_says_how_much(tmp_path):
    arguments = ["--out", str(tmp_path / "b.mcap"), "--source", str(folder(tmp_path))]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "5 frames" in done.output
