"""The stream `thumb`: at most two small pictures a second and camera, each within one body."""

import base64

import cv2
import numpy as np
import pytest
from faultkit.station import parts_folder, station, until

from station.parts import PartRecord
from station.schema import Stream, Thumb, body, new_id
from station.sources.base import Frame
from station.thumbs import MOST_BYTES, Thumbs
from tests.station.test_gateways_late import result

NOISE = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
PLAIN = np.full((60, 80, 3), 128, np.uint8)


def record(image=PLAIN, part_id="p1", raw=None, **changes):
    frame = None if image is None and raw is None else Frame(image, raw, "p", 0, 0, 0)
    told = result(1, part_id=part_id, trigger_id=new_id(), **changes)
    return PartRecord(frame, b"", told, None, (), None, None)


class Screen:
    def __init__(self):
        self.now, self.seen = 100.0, []
        self.thumbs = Thumbs(
            lambda *thumb: self.seen.append(thumb), {"left", "right"}, lambda: self.now
        )

    def show(self, *records):
        for one in records:
            self.thumbs.part(one)
        return len(self.seen)


@pytest.mark.parametrize(
    ("image", "size"), [(PLAIN, (80, 60)), (PLAIN[:, :, 0], (80, 60)), (NOISE, None)]
)
def test_a_picture_fits_a_body_and_says_its_size(image, size):
    screen = Screen()
    part = record(image)
    assert screen.show(part) == 1
    jpeg, wide, high, trigger_id = screen.seen[0]
    shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
    assert shown.shape[:2] == (high, wide) and (size is None or (wide, high) == size)
    assert trigger_id == part.result.trigger_id and len(jpeg) <= MOST_BYTES
    text = base64.b64encode(jpeg).decode()
    head = {"line": "l", "station": "s", "epoch": new_id(), "seq": 1}
    body(Thumb(**head, trigger_id=trigger_id, w=wide, h=high, jpeg=text))


def test_no_more_than_two_a_second_and_camera():
    screen = Screen()
    assert screen.show(*(record() for _ in range(10))) == 1
    screen.now += 0.49
    assert screen.show(record()) == 1
    screen.now += 0.02
    assert screen.show(record()) == 2
    assert screen.show(record(part_id="left/1"), record(part_id="right/1")) == 4
    screen.now += 0.5
    assert screen.show(record(part_id="lot-1/1"), record(part_id="lot-2/1"), record()) == 5


def test_a_part_without_a_picture_has_no_thumb():
    screen = Screen()
    assert screen.show(record(None)) == 0
    assert screen.show(record(None, raw=b"no picture")) == 0
    screen.thumbs.close()


def test_a_running_station_publishes_thumbs(tmp_path):
    folder = parts_folder(tmp_path / "in", 3)
    more = {"trigger": {"by": "bus"}, "source": {"loop": True}}
    with station(tmp_path, str(folder), **more) as (daemon, client):
        until(lambda: daemon.readiness.evaluate()[0])
        bodies = client.subscribe((Stream.THUMB, Stream.STATUS), timeout_s=30.0)
        next(bodies)
        trigger_id = new_id()
        client.trigger(trigger_id)
        thumb = next(b for b in bodies if b is None or b.stream == Stream.THUMB)
        assert thumb.trigger_id == trigger_id and thumb.w > 1
        assert base64.b64decode(thumb.jpeg)[:2] == b"\xff\xd8"
