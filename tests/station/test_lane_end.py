"""A lane that dies of something nobody foresaw: told, not READY, and never exit 0."""

import pytest
from faultkit.camera import picture
from faultkit.engines import FakeRoom
from faultkit.station import parts_folder, results, settings_in, show, station, until
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage

from station import lane as lane_module
from station import record_mcap
from station.cli_run import run
from station.options import Options
from station.record_mcap import McapFile
from station.record_read import Item
from station.record_reader import McapSource, frame_of
from station.record_stream import SyncedStream
from station.sources.base import EndOfSource, Frame
from station.sources.choose import choose


class Falls:
    """A source whose third frame raises what no source should."""

    def __init__(self, settings):
        self._source = choose(settings.spec, settings)
        self.live, self.ends = self._source.live, self._source.ends
        self.open, self.close = self._source.open, self._source.close
        self._reads = 0

    def read(self, timeout_s):
        self._reads += 1
        if self._reads == 3:
            raise ZeroDivisionError("nobody foresaw this")
        return self._source.read(timeout_s)


def test_an_unexpected_error_ends_the_run_with_a_fault_and_not_with_0(tmp_path):
    folder = parts_folder(tmp_path / "in", 5)
    with pytest.raises(ZeroDivisionError, match="nobody foresaw this"):
        run(settings_in(tmp_path, str(folder)), None, Options(engine=FakeRoom(), source=Falls))


def test_a_station_whose_lane_died_says_why_it_is_not_ready(tmp_path):
    folder = parts_folder(tmp_path / "in", 5)
    options = {"source": Falls}
    with station(tmp_path, str(folder), trigger={"by": "bus"}, options=options) as (daemon, client):
        assert show(client)[0] == "OK"
        assert show(client)[0] == "OK"
        assert show(client) == ("ERROR", "camera")  # the part that waited is not left alone
        until(lambda: not daemon.readiness.evaluate()[0])
        assert "capture has ended: nobody foresaw this" in daemon.readiness.evaluate()[1]


def test_a_part_that_cannot_be_prepared_has_its_verdict_at_once(tmp_path, monkeypatch):
    def fall(*_args, **_kwargs):
        raise TypeError("an odd picture")

    monkeypatch.setattr(lane_module, "prepare", fall)
    folder = parts_folder(tmp_path / "in", 3)
    with station(tmp_path, str(folder)) as (_, client):
        until(lambda: len(results(client)) == 3, 5)
        assert {(r.verdict, r.reason) for r in results(client)} == {("ERROR", "camera")}


@pytest.mark.parametrize(
    "changes",
    [{"encoding": "rgb8"}, {"height": 239}, {"width": 0, "data": b""}],
)
def test_a_picture_of_another_program_is_a_fault_and_the_replay_goes_on(
    tmp_path, monkeypatch, changes
):
    odd = {"width": 320, "height": 240, "encoding": "bgr8", "data": picture(9).tobytes()} | changes
    file = McapFile(SyncedStream(tmp_path / "x.mcap"), {})
    for n in range(3):
        with monkeypatch.context() as patch:
            if n == 1:
                patch.setattr(record_mcap, "image_message", lambda _frame: RawImage(**odd))
            file.image(Frame(picture(n), None, "n", 0, 1000 + n, n), seq=n + 1)
    file.finish()
    source = McapSource(tmp_path / "x.mcap")
    source.open()
    frames = [source.read(1.0) for _ in range(3)]
    with pytest.raises(EndOfSource):
        source.read(1.0)
    assert [f.fault is None for f in frames] == [True, False, True]
    assert "recorded picture cannot be read (foxglove.RawImage" in frames[1].fault


@pytest.mark.parametrize("schema", ["foxglove.CompressedImage", "foxglove.RawImage"])
def test_damaged_messages_are_faults(schema):
    item = Item("/camera", schema, "protobuf", 1, 1000, b"\xff\xff\xff")
    assert "cannot be read" in frame_of(item).fault
