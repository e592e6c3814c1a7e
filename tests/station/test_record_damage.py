"""Recordings with wrong bytes in them: the station starts, and what is readable is kept."""

import io
import shutil
from collections import Counter

import numpy as np
import pytest
import uikit

from station import record_recover
from station.record import Recorder
from station.record_mcap import McapFile
from station.record_read import RecordingReader, open_reader
from station.record_stream import SyncedStream
from station.settings import RecordSettings
from station.sources.base import Frame

NAME = "rec-20260101T000000000000-all.mcap"


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> bytes:
    """The bytes of a `.part` of five pictures, each in a chunk of its own."""
    stream = SyncedStream(tmp_path_factory.mktemp("killed") / NAME)
    file = McapFile(stream, {"line": "l", "station": "s"})
    for n in range(1, 6):
        noise = np.random.default_rng(n).bytes(2000)
        frame = Frame(None, b"\xff\xd8" + noise + b"\xff\xd9", "n", 0, 1000 + n, n)
        file.image(frame, seq=n)
        file.sync()
    stream.abandon()
    return stream.part.read_bytes()


def start(folder, data, events=None):
    """A recorder that starts over this `.part`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(data)
    Recorder(RecordSettings(folder=folder, every_ok=1), dict, events or uikit.Events()).close()
    return {path.name for path in folder.iterdir()}


def items(data):
    return [(i.topic, i.sequence, i.data) for i in RecordingReader(io.BytesIO(data), len(data))]


def test_one_wrong_byte_anywhere_neither_stops_the_start_nor_loses_the_file(tmp_path, killed):
    whole = items(killed)
    rng = np.random.default_rng(1)
    head = killed.index(b"station", 60)  # the metadata: it comes first and has no checksum
    places = [*rng.integers(0, len(killed), 150), *rng.integers(head - 20, head + 60, 60)]
    seen: Counter[str] = Counter()
    for place in map(int, places):
        data = bytearray(killed)
        data[place] ^= int(rng.integers(1, 256))
        events = uikit.Events()
        left = start(tmp_path / "rec", bytes(data), events)
        assert events.kinds() == ["recording_recovered"], (place, events.told)
        kept = []
        if NAME in left:
            reader = open_reader(tmp_path / "rec" / NAME)
            kept = [(i.topic, i.sequence, i.data) for i in reader]
            assert reader.loss is None
        if len(kept) < len(whole) - 1:  # more than the last is missing: the bytes are kept
            assert f"{NAME.removesuffix('.mcap')}.mcap.damaged" in left, (place, left)
        assert not [name for name in left if name.endswith((".part", ".recovering"))]
        seen["whole" if len(kept) == len(whole) else "less"] += 1
    assert seen["whole"] and seen["less"]


def test_what_a_person_may_still_read_is_set_aside_and_told(tmp_path, killed):
    events = uikit.Events()
    first = killed.index(b"\x04\0\0\0zstd")  # in the head of the first chunk
    data = bytearray(killed)
    data[first - 31] = 0x7F  # a high byte of its length: nothing behind it can be found
    damaged = NAME.replace(".mcap", ".mcap.damaged")
    assert start(tmp_path, bytes(data), events) == {damaged}
    assert (tmp_path / damaged).read_bytes() == bytes(data)
    assert events.told[0][2].startswith(f"{NAME}.part: unreadable; the rest is in {damaged}; cut")


def test_zeros_that_a_power_cut_left_are_a_cut(tmp_path, killed):
    data = killed + bytes(4096)
    reader = RecordingReader(io.BytesIO(data), len(data))
    assert len(list(reader)) == 5
    assert (reader.loss.at, reader.loss.cut_bytes) == (len(killed), 4096)
    assert start(tmp_path, data) == {NAME}


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(28, "No space left on device")])
def test_a_file_that_cannot_be_recovered_is_told_and_stays(tmp_path, killed, monkeypatch, error):
    def fail(_reader, _out):
        raise error

    monkeypatch.setattr(record_recover, "_copy", fail)
    events = uikit.Events()
    left = start(tmp_path, killed, events)
    assert left == {f"{NAME}.part" if isinstance(error, OSError) else f"{NAME}.damaged"}
    assert [(kind, severity) for kind, severity, _ in events.told] == [
        ("recording_failed", "error")
    ]
    monkeypatch.undo()
    used = Recorder(RecordSettings(folder=tmp_path, every_ok=1), dict, events)._classes["all"]
    assert used.budget.state.used > 0, "what is left counts"
