"""The recorder: what is kept, what survives a cut, what a full disk does."""

import errno
import io
import json

import numpy as np
import pytest
import uikit
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.ImageAnnotations_pb2 import ImageAnnotations
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from mcap.reader import make_reader

from engines.errors import SourceError
from station.record import Recorder
from station.record_read import RecordingReader
from station.record_reader import McapSource
from station.settings import RecordSettings
from station.sources.base import EndOfSource
from station.sources.decode import decoded

IDENTITY = {"line": "line1", "station": "st1", "bundle_sha": "b" * 64, "config_sha": "c" * 64}


def recorder(folder, events=None, clock=None, free=None, **changes):
    settings = RecordSettings(**({"folder": folder, "every_ok": 1} | changes))
    options = {"clock": clock} if clock else {}
    if free:
        options["free"] = free
    return Recorder(settings, lambda: IDENTITY, events or uikit.Events(), **options)


def files(folder, pattern="*.mcap"):
    return sorted(folder.glob(pattern))


def read_parts(path):
    source = McapSource(path)
    source.open()
    found = []
    while True:
        try:
            frame = source.read(1.0)
        except EndOfSource:
            return source, found
        found.append((decoded(frame), source.verdict(frame.index)))


def test_the_mcap_library_reads_pictures_boxes_verdicts_and_schemas(tmp_path):
    writer = recorder(tmp_path)
    writer.part(uikit.record(1, "OK", jpeg=True))
    writer.part(uikit.record(2, "NG"))
    writer.message("desc", uikit.description(2))
    writer.message("event", uikit.event(1))
    writer.close()
    (path,) = files(tmp_path)
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        seen = {}
        for schema, channel, message in reader.iter_messages():
            seen.setdefault(channel.topic, []).append((schema, message.data))
        metadata = {m.name: m.metadata for m in reader.iter_metadata()}
    assert {t: len(v) for t, v in seen.items()} == {
        "/camera": 1,
        "/camera/raw": 1,
        "/camera/boxes": 2,
        "/result": 2,
        "/desc": 1,
        "/event": 1,
    }
    assert CompressedImage.FromString(seen["/camera"][0][1]).format == "jpeg"
    raw = RawImage.FromString(seen["/camera/raw"][0][1])
    assert (raw.width, raw.height, raw.encoding, raw.step) == (480, 360, "bgr8", 1440)
    boxes = ImageAnnotations.FromString(seen["/camera/boxes"][1][1])
    assert [(p.x, p.y) for p in boxes.points[0].points][::2] == [(300, 150), (340, 190)]
    assert boxes.points[0].timestamp == raw.timestamp  # Foxglove pairs boxes with their picture
    assert seen["/result"][1][1] == uikit.record(2, "NG").body
    assert json.loads(seen["/result"][0][0].data)["title"] == "Result"
    assert metadata["station"]["bundle_sha"] == "b" * 64


def test_the_metadata_names_every_recipe_in_the_file_and_each_file_its_own_beginning(tmp_path):
    now = {"recipe_sha": "one"}
    settings = RecordSettings(folder=tmp_path, every_ok=1)
    writer = Recorder(settings, lambda: dict(now), uikit.Events())
    writer.part(uikit.record(1, "OK", jpeg=True))
    writer.part(uikit.record(2, "OK", jpeg=True, recipe="ring", recipe_sha="d" * 64))
    writer.part(uikit.record(3, "OK", jpeg=True))
    writer.close()
    now["recipe_sha"] = "two"
    writer.part(uikit.record(4, "OK", jpeg=True))
    writer.close()
    found = []
    for path in files(tmp_path):
        with path.open("rb") as stream:
            found.append({m.name: m.metadata for m in make_reader(stream).iter_metadata()})
    assert [f["station"]["recipe_sha"] for f in found] == ["one", "two"]
    assert list(found[0]) == ["station", "recipe disc aaaaaaaa", "recipe ring dddddddd"]
    assert found[0]["recipe ring dddddddd"]["recipe_sha"] == "d" * 64
    assert list(found[1]) == ["station", "recipe disc aaaaaaaa"]


def test_the_protobuf_schemas_in_the_file_decode_without_our_code(tmp_path):
    writer = recorder(tmp_path)
    writer.part(uikit.record(3, "NG"))
    writer.close()
    with files(tmp_path)[0].open("rb") as stream:
        for schema, channel, message in make_reader(stream).iter_messages(topics=["/camera/raw"]):
            pool = descriptor_pool.DescriptorPool()
            for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
                pool.Add(file)
            kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name))
            picture = kind.FromString(message.data)
            assert channel.message_encoding == "protobuf"
            pixels = np.frombuffer(picture.data, np.uint8).reshape(360, 480, 3)
            assert np.array_equal(pixels, uikit.record(3, "NG").frame.image)


def test_a_recording_is_replayed_with_the_same_pixels_and_its_verdicts(tmp_path):
    writer = recorder(tmp_path)
    records = [uikit.record(n, "NG" if n % 3 == 0 else "OK", jpeg=n % 2 == 0) for n in range(1, 9)]
    records.append(uikit.record(9, "ERROR"))
    for record in records:
        writer.part(record)
    writer.close()
    source, found = read_parts(tmp_path)
    assert [body for _, body in found] == [json.loads(r.body) for r in records]
    for (frame, _), record in zip(found, records, strict=True):
        assert np.array_equal(frame.image, decoded(record.frame).image)
        assert frame.tags["trigger_id"] == record.result.trigger_id
    assert source.loss is None
    assert source.metadata["station"]["line"] == "line1"


def test_a_part_without_a_picture_and_damaged_bytes_replay_as_faults(tmp_path):
    writer = recorder(tmp_path)
    missing = uikit.record(1, "ERROR")
    damaged = uikit.record(2, "ERROR", jpeg=True)
    object.__setattr__(missing, "frame", None)
    object.__setattr__(damaged.frame, "raw", damaged.frame.raw[:500])
    writer.part(missing)
    writer.part(damaged)
    writer.close()
    _, found = read_parts(tmp_path)
    assert found[0][0].fault == "recorded without a picture"
    assert "truncated JPEG" in found[1][0].fault


def _whole_file(tmp_path, parts=40):
    clock = uikit.Clock()
    writer = recorder(tmp_path, clock=clock)
    for n in range(1, parts + 1):
        writer.part(uikit.record(n, "OK", jpeg=True, size=4))
        clock.now += 0.3
        writer.tick()
    writer.close()
    return files(tmp_path)[0].read_bytes()


def test_a_file_cut_at_500_places_opens_and_tells_its_loss(tmp_path, figure):
    data = _whole_file(tmp_path)
    whole = list(RecordingReader(io.BytesIO(data), len(data)))
    offsets = np.random.default_rng(8).integers(0, len(data), 500)
    for cut in [0, 7, 8, len(data) - 1, *map(int, offsets)]:
        reader = RecordingReader(io.BytesIO(data[:cut]), cut)
        found = list(reader)
        assert found == whole[: len(found)]
        assert reader.loss is not None
        assert reader.loss.at + reader.loss.cut_bytes == cut
    reader = RecordingReader(io.BytesIO(data), len(data))
    assert len(list(reader)) == len(whole)
    assert reader.loss is None
    figure(
        "P8", f"cut at {len(offsets) + 4} places: each opens, tells its loss, holds what precedes"
    )


def test_a_kill_loses_at_most_the_parts_of_the_last_second(tmp_path):
    clock = uikit.Clock()
    writer = recorder(tmp_path, clock=clock)
    for n in range(1, 31):
        clock.now += 0.1
        writer.part(uikit.record(n, "OK", jpeg=True, size=4))
        writer.tick()
    (part,) = files(tmp_path, "*.part")
    data = part.read_bytes()  # what has reached the operating system, as after kill -9
    found = [i for i in RecordingReader(io.BytesIO(data), len(data)) if i.topic == "/result"]
    assert 20 <= len(found) < 31


def test_a_part_file_is_made_whole_at_the_next_start(tmp_path):
    clock = uikit.Clock()
    killed = recorder(tmp_path, clock=clock)
    for n in range(1, 6):
        clock.now += 1.1
        killed.part(uikit.record(n, "NG"))
    killed.tick()
    (part,) = files(tmp_path, "*.part")
    events = uikit.Events()
    recorder(tmp_path, events).close()
    assert part.exists() and "another program is writing it" in events.told[0][2]
    killed._classes["all"]._file.stream.abandon()  # as kill -9 lets go of it
    with part.open("ab") as stream:
        stream.write(b"\x06\xff\x00")  # a torn record
    events = uikit.Events()
    recorder(tmp_path, events).close()
    assert files(tmp_path, "*.part") == []
    assert events.kinds() == ["recording_recovered"]
    assert "cut at byte" in events.told[0][2]
    with files(tmp_path)[0].open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        assert len(list(reader.iter_messages(topics=["/result"]))) == 5
        assert "recovered" in [m.name for m in reader.iter_metadata()]


def test_one_damaged_block_costs_only_itself(tmp_path):
    data = bytearray(_whole_file(tmp_path))
    data[len(data) // 2] ^= 0xFF
    reader = RecordingReader(io.BytesIO(bytes(data)), len(data))
    found = [i for i in reader if i.topic == "/result"]
    assert reader.loss is not None
    assert reader.loss.bad_chunks == 1
    assert 20 < len(found) < 40


def test_policy_keeps_every_reject_and_one_in_n_good_parts(tmp_path):
    writer = recorder(tmp_path, every_ok=10)
    for n in range(1, 41):
        writer.part(uikit.record(n, "NG" if n % 8 == 0 else "OK", jpeg=True, size=4))
    writer.close()
    verdicts = [b["verdict"] for _, b in read_parts(files(tmp_path, "*-notok.mcap")[0])[1]]
    kept = [b["verdict"] for _, b in read_parts(files(tmp_path, "*-ok.mcap")[0])[1]]
    assert verdicts == ["NG"] * 5
    assert kept == ["OK"] * 4


def test_the_seconds_before_a_reject_are_kept_and_not_replayed(tmp_path):
    writer = recorder(tmp_path, every_ok=0, pre_trigger_s=1.0)
    for n in range(1, 31):  # 10 frames a second
        writer.frame(uikit.frame(n, jpeg=True))
    writer.part(uikit.record(31, "NG", jpeg=True))
    writer.close()
    with files(tmp_path)[0].open("rb") as stream:
        before = list(make_reader(stream).iter_messages(topics=["/camera/before"]))
    assert len(before) == 11
    assert len(read_parts(tmp_path)[1]) == 1


def test_the_oldest_recordings_go_first_and_only_of_their_class(tmp_path):
    events = uikit.Events()
    writer = recorder(
        tmp_path,
        events,
        every_ok=2,
        budget_not_ok_bytes=4 << 20,
        budget_ok_bytes=1 << 20,
        file_bytes=1 << 20,
    )
    writer.part(uikit.record(1, "NG", jpeg=True))
    for n in range(2, 120):
        writer.part(uikit.record(n, "OK", jpeg=True))
        total = sum(f.stat().st_size for f in files(tmp_path, "*-ok.mcap*"))
        assert total <= 1 << 20
    writer.close()
    assert "recording_budget" in events.kinds()
    kept = [b["part_id"] for _, b in read_parts(files(tmp_path, "*-ok.mcap")[-1])[1]]
    assert kept[-1] == "part-00118"
    assert len(files(tmp_path, "*-notok.mcap")) == 1


def test_below_the_free_space_floor_nothing_is_written_and_it_is_told(tmp_path):
    events = uikit.Events()
    writer = recorder(tmp_path, events, free=lambda _: 1000)
    writer.part(uikit.record(1, "NG"))
    writer.part(uikit.record(2, "NG"))
    writer.close()
    assert writer.dropped == 2
    assert events.kinds() == ["recording_full"]


def test_a_disk_that_others_fill_costs_no_old_recording(tmp_path):
    writer = recorder(tmp_path)
    for n in range(1, 4):
        writer.part(uikit.record(n, "NG"))
    writer.close()
    before = files(tmp_path)
    events = uikit.Events()
    writer = recorder(tmp_path, events, free=lambda _: 1000)
    writer.part(uikit.record(9, "NG"))
    writer.close()
    assert before
    assert files(tmp_path) == before
    assert events.kinds() == ["recording_full"]


def test_a_failing_disk_is_told_once_and_parts_go_on(tmp_path, monkeypatch):
    events = uikit.Events()
    clock = uikit.Clock()
    writer = recorder(tmp_path, events, clock=clock)
    writer.part(uikit.record(1, "NG"))

    def fail(_handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("station.record_stream.os.fdatasync", fail)
    clock.now += 1.5
    writer.part(uikit.record(2, "NG"))
    writer.part(uikit.record(3, "NG"))
    monkeypatch.undo()
    clock.now += 20
    writer.part(uikit.record(4, "NG"))
    writer.close()
    assert events.kinds() == ["recording_failed"]
    assert [b["part_id"] for _, b in read_parts(files(tmp_path)[-1])[1]] == ["part-00004"]


def test_a_missing_or_empty_recording_is_one_sentence(tmp_path):
    with pytest.raises(SourceError, match="no such recording"):
        McapSource(tmp_path / "none.mcap").open()
    (tmp_path / "empty.mcap").write_bytes(b"hello")
    with pytest.raises(SourceError, match="no recorded part in it"):
        McapSource(tmp_path / "empty.mcap").open()
