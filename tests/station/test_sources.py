"""Folders, videos and cameras: what they deliver, what they notice, how they fail."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from faultkit.camera import FaultCamera, damage, jpeg, picture
from faultkit.station import parts_folder, until

from engines.errors import SourceError
from station.settings import SourceSettings
from station.sources.base import EndOfSource, open_source
from station.sources.decode import decode, decoded, jpeg_fault
from station.sources.ring import Ring


def read_all(source):
    source.open()
    found = []
    try:
        while True:
            if frame := source.read(0.2):
                found.append(decoded(frame))
    except EndOfSource:
        return found
    finally:
        source.close()


# -- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(20))
def test_a_truncated_jpeg_is_a_fault(number):
    image, fault = decode(damage(jpeg(picture(number)), "truncate", number))
    assert image is None and "truncated" in fault


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("marker", [0x01, 0x47, 0xC4, 0xD3, 0xD8, 0xE1])
def test_a_stray_marker_inside_the_picture_is_a_fault(where, marker):
    good = jpeg(picture(3))
    at = int(len(good) * where)
    image, fault = decode(good[:at] + bytes([0xFF, marker]) + good[at + 2 :])
    assert image is None and fault


@pytest.mark.parametrize("quality", [20, 85, 100])
def test_a_whole_jpeg_is_none(quality):
    assert jpeg_fault(jpeg(picture(3), quality)) is None


def test_progressive_jpeg_and_restart_markers_are_whole():
    image = picture(5)
    for flags in ([cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]):
        data = cv2.imencode(".jpg", image, flags)[1].tobytes()
        assert jpeg_fault(data) is None
        assert decode(data)[0].shape == image.shape


def test_a_lost_restart_interval_is_a_fault():
    data = cv2.imencode(".jpg", picture(5), [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes()
    first, second = data.index(b"\xff\xd1"), data.index(b"\xff\xd3")
    assert "restart" in jpeg_fault(data[:first] + data[second:])


def test_padding_after_the_end_is_allowed():
    assert jpeg_fault(jpeg(picture(1)) + b"\0" * 100) is None


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG"])
def test_what_is_no_picture_is_a_fault(data):
    image, fault = decode(data)
    assert image is None and fault


def test_a_damaged_png_is_a_fault_told_once_and_not_by_libpng(capfd):
    whole = cv2.imencode(".png", picture(3))[1].tobytes()
    assert decode(whole)[1] is None and decode(whole + b"tail")[1] is None
    wrong = bytearray(whole)
    wrong[len(whole) // 2] ^= 1
    assert "corrupt PNG (checksum of IDAT at byte" in decode(bytes(wrong))[1]
    for cut in (9, 40, len(whole) // 2, len(whole) - 1):
        assert decode(whole[:cut])[1] == f"truncated PNG ({cut} bytes, no end-of-image chunk)"
    assert capfd.readouterr().err == ""


def test_png_is_decoded_to_bgr(tmp_path):
    image = picture(7)
    assert np.array_equal(decode(cv2.imencode(".png", image)[1].tobytes())[0], image)


# -- folders and videos --------------------------------------------------------------------------


def test_a_folder_is_read_in_sorted_order_and_ends(tmp_path):
    parts_folder(tmp_path / "b", 3)
    parts_folder(tmp_path / "a", 2)
    frames = read_all(open_source(str(tmp_path)))
    assert [f.name for f in frames] == ["p000.png", "p001.png", "p000.png", "p001.png", "p002.png"]
    assert np.array_equal(frames[1].image, picture(1))


def test_a_file_name_that_is_not_utf_8_becomes_one_that_messages_can_hold(tmp_path):
    """Half an hour of enrolment ended in an error of the serializer, with nothing to show."""
    parts_folder(tmp_path, 1)
    wild = os.fsdecode(b"gr\xf6\xdfe\n.png")
    (tmp_path / "p000.png").rename(tmp_path / wild)
    (tmp_path / os.fsdecode(b"l\xf6ose.png")).symlink_to(tmp_path)
    whole, *others = read_all(open_source(str(tmp_path)))
    assert whole.name == "gr__e_.png" and whole.fault is None and others == []
    (tmp_path / "list.txt").write_bytes(b"no\x01where.png\n")
    (broken,) = read_all(open_source(str(tmp_path / "list.txt")))
    assert broken.fault == "no_where.png: cannot be read (No such file or directory)"


def test_a_jsonl_list_names_its_pictures(tmp_path):
    parts_folder(tmp_path / "x", 3)
    (tmp_path / "i.jsonl").write_text('{"image": "x/p002.png"}\n{"image": "x/p000.png"}\n')
    frames = read_all(open_source(str(tmp_path / "i.jsonl")))
    assert [f.name for f in frames] == ["p002.png", "p000.png"]


def test_missing_and_empty_folders_say_so(tmp_path):
    with pytest.raises(SourceError, match="no such folder") as error:
        open_source(str(tmp_path / "nope"))
    assert error.value.code == 4
    with pytest.raises(SourceError, match="no pictures in it"):
        open_source(str(tmp_path)).open()
    (tmp_path / "x.pdf").write_text("")
    with pytest.raises(SourceError, match="neither a folder"):
        open_source(str(tmp_path / "x.pdf"))
    with pytest.raises(SourceError, match="ftp:// is not known"):
        open_source("ftp://host/x")


def test_a_watched_folder_waits_for_new_files(tmp_path):
    parts_folder(tmp_path, 1)
    source = open_source(str(tmp_path), SourceSettings(spec=str(tmp_path), watch=True))
    source.open()
    assert source.read(0.1).name == "p000.png"
    assert source.read(0.05) is None
    cv2.imwrite(str(tmp_path / "q.png"), picture(9))
    assert source.read(0.5).name == "q.png"


def test_a_looped_folder_does_not_end(tmp_path):
    parts_folder(tmp_path, 2)
    source = open_source(str(tmp_path), SourceSettings(spec=str(tmp_path), loop=True))
    source.open()
    assert [source.read(0.1).name for _ in range(5)] == [
        "p000.png", "p001.png", "p000.png", "p001.png", "p000.png"
    ]  # fmt: skip


def video(path, count):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    for number in range(count):
        writer.write(picture(number))
    writer.release()
    return path


def test_a_video_is_read_frame_by_frame_and_ends(tmp_path):
    path = video(tmp_path / "v.avi", 6)
    frames = read_all(open_source(str(path)))
    assert len(frames) == 6 and frames[0].image.shape == (240, 320, 3)
    assert [f.index for f in frames] == [1, 2, 3, 4, 5, 6]


def test_a_slow_video_gives_its_reader_time_for_a_heartbeat(tmp_path):
    path = video(tmp_path / "v.avi", 2)
    source = open_source(str(path), SourceSettings(spec=str(path), fps=2))
    source.open()
    assert source.read(0.05).index == 1
    assert source.read(0.05) is None  # due in half a second: the reader is asked again before
    until(lambda: (frame := source.read(0.05)) is not None and frame.index == 2)


def test_a_file_that_only_looks_like_a_video_is_refused(tmp_path):
    (tmp_path / "v.mp4").write_text("no")
    with pytest.raises(SourceError, match="not a video"):
        open_source(str(tmp_path / "v.mp4")).open()


# -- the ring ------------------------------------------------------------------------------------


def test_the_ring_gives_back_what_was_written():
    ring = Ring.create(3, 1 << 20)
    image = picture(1)
    slot = ring.write(0, image.tobytes(), "bgr", image.shape, times=(5, 6))
    got = ring.read(slot, check=True)
    assert np.array_equal(got.image(), image)
    assert (got.index, got.t_capture_ns, got.wall_us) == (0, 5, 6)
    ring.close()


def test_the_ring_tells_a_slot_that_is_being_written_and_a_wrong_checksum():
    ring = Ring.create(2, 1 << 16)
    slot = ring.write(0, b"abc", "encoded", (0, 0, 0), times=(1, 1))
    ring._map[slot * ring._stride + 128] ^= 1
    assert ring.read(slot, check=True) is None
    ring._map[slot * ring._stride] |= 1
    assert ring.read(slot) is None
    assert ring.read(1) is None  # never written
    ring.close()


def test_a_ring_that_does_not_fit_is_refused():
    with pytest.raises(SourceError, match="does not fit"):
        Ring.create(64, 1 << 40)


# -- cameras -------------------------------------------------------------------------------------


@pytest.fixture
def live():
    with FaultCamera(fps=50) as camera:
        source = open_source(camera.url)
        events = []
        source.on_event = lambda kind, text: events.append((kind, text))
        source.open()
        until(lambda: source.health().frames > 15)
        yield camera, source, events
        source.close()


def drain(source):
    while source.read(0):
        pass


def settled(camera, source, mode, count=5):
    """`count` frames after the camera has changed its mode."""
    camera.mode = mode
    time.sleep(0.1)
    drain(source)
    return [decoded(f) for f in (source.read(0.5) for _ in range(count)) if f]


def test_no_camera_says_so():
    with pytest.raises(SourceError, match=r"no camera 77 \(/dev/video77 does not exist\)"):
        open_source("77").open()
    with pytest.raises(SourceError, match="refused"):
        open_source("http://127.0.0.1:1/stream").open()


def test_frames_are_stamped_and_counted(live):
    _, source, _ = live
    now = time.monotonic_ns()
    drain(source)
    frame = source.read(30)
    assert now - 1e8 < frame.t_capture_ns < time.monotonic_ns()
    assert frame.raw[:2] == b"\xff\xd8"
    until(lambda: 5 < source.health().fps < 100)  # a busy machine finds many frames at once


def test_a_frozen_camera_repeats(live):
    camera, source, _ = live
    assert all(f.repeat for f in settled(camera, source, "freeze"))
    assert not any(f.repeat for f in settled(camera, source, "ok"))


@pytest.mark.parametrize("mode", ["truncate", "corrupt", "no_eoi_data"])
def test_damaged_pictures_are_faults_with_the_original_bytes(live, mode):
    camera, source, _ = live
    frames = settled(camera, source, mode)
    assert frames and all(f.fault and f.image is None and f.raw for f in frames)


def test_a_stall_is_seen_told_once_and_healed(live):
    """How soon: test_fault_matrix.py, 50 stalls."""
    camera, source, events = live

    def told():
        return [kind for kind, _ in events].count("camera_stalled")

    for number in range(3):
        camera.mode = "stall"
        until(lambda: not source.health().ok)
        until(lambda number=number: told() == number + 1)  # the pump tells in its own next turn
        camera.mode = "ok"
        until(lambda: source.health().ok)
    assert told() == 3


def test_a_dropped_connection_comes_back(live):
    camera, source, events = live
    camera.mode = "drop"
    until(lambda: "camera_lost" in {kind for kind, _ in events})
    camera.mode = "ok"
    until(lambda: source.health().ok)
    assert source.health().restarts >= 1
    until(lambda: "camera_opened" in {kind for kind, _ in events})


def test_a_killed_child_is_replaced_and_never_outlives_its_source(live):
    _, source, _ = live
    os.kill(source.pid, 9)
    until(lambda: not source.health().ok)
    until(lambda: source.health().ok)
    pid = source.pid
    source.close()
    until(lambda: not Path(f"/proc/{pid}").exists())
    time.sleep(0.7)
    assert source.pid is None


def test_a_hanging_child_is_killed_and_replaced():
    with FaultCamera(fps=50) as camera:
        source = open_source(camera.url, SourceSettings(spec=camera.url, restart_s=0.5))
        source.open()
        until(lambda: source.health().frames > 5)
        first = source.pid
        camera.mode = "stall"
        until(lambda: source.pid not in (first, None))
        camera.mode = "ok"
        until(lambda: source.health().ok)
        source.close()
