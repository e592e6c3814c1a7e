"""`station record`: frames without verdicts, and that they can be replayed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import uikit
from typer.testing import CliRunner

from engines.errors import LedgerError, UsageError
from station.record_cli import app, record
from station.record_mcap import McapFile
from station.record_reader import McapSource
from station.record_stream import SyncedStream
from station.settings import SourceSettings
from station.sources.base import EndOfSource, open_source
from station.sources.choose import is_recording
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


def cut_off(path, frames=3):
    """What `station record` leaves when it is killed."""
    stream = SyncedStream(path)
    file = McapFile(stream, {})
    for n in range(frames):
        file.image(uikit.frame(n, jpeg=True), seq=n + 1)
        file.sync()
    return stream


def test_a_recording_that_was_killed_opens_as_it_is(tmp_path):
    stream = cut_off(tmp_path / "a.mcap")
    stream.abandon()
    replayed = open_source(str(stream.part))
    replayed.open()
    assert [replayed.read(1.0).raw is not None for _ in range(3)] == [True] * 3
    with pytest.raises(EndOfSource):
        replayed.read(1.0)
    assert "without its index" in str(replayed.loss)


def test_what_is_a_recording_by_its_name():
    yes = ("a.mcap", "A.MCAP", "a.mcap.part", "a.mcap.damaged", "a.mcap.2.damaged")
    no = ("a.mcap.txt", "mcap", "a.part", "a.damaged", "a.mcap.recovering", "a.mcapx")
    assert [name for name in (*yes, *no) if is_recording(Path(name))] == list(yes)


def test_the_same_command_again_makes_a_killed_recording_whole_and_does_not_overwrite_it(tmp_path):
    out, parts = tmp_path / "a.mcap", folder(tmp_path)
    stream = cut_off(out)
    with pytest.raises(UsageError, match="another program is writing it; name another"):
        record(source(parts), out, None, {})
    stream.abandon()
    with pytest.raises(UsageError, match=r"was killed lay there .*3 messages kept in a\.mcap"):
        record(source(parts), out, None, {})
    assert out.exists() and not stream.part.exists()
    kept = out.read_bytes()
    cut_off(tmp_path / "b.mcap").abandon()
    (tmp_path / "b.mcap").write_bytes(kept)  # both: nobody can say which one is meant
    with pytest.raises(UsageError, match=r"b\.mcap and b\.mcap\.part exist already"):
        record(source(parts), tmp_path / "b.mcap", None, {})
    cut_off(tmp_path / "c.mcap", frames=0).abandon()  # nothing in it: nothing to keep
    assert record(source(parts), tmp_path / "c.mcap", None, {}).frames == 5


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
