"""The doctor: one sentence per organ, and an exit code that tells."""

import json
import socket
import struct
from pathlib import Path

import pytest
import uikit
from uikit import station as uistation

from engines.errors import EngineError
from station import doctor, doctor_cameras, doctor_machine, doctor_product
from station.doctor import Finding, exit_code, run_doctor
from station.settings import Settings


def settings(tmp_path, **changes):
    base = {
        "ledger": {"path": tmp_path / "ledger.db", "min_free_bytes": 0},
        "archive": {"folder": tmp_path / "archive", "min_free_bytes": 0},
        "record": {"folder": tmp_path / "recordings", "min_free_bytes": 0},
        "recipe": {"root": tmp_path / "recipes"},
        "bus": {"ctl_port": free_port(), "pub_port": free_port()},
        "ui": {"port": free_port()},
    }
    return Settings(**(base | changes))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_healthy_machine_is_told_line_by_line_with_exit_0(tmp_path):
    lines = []
    code = run_doctor(settings(tmp_path), as_json=True, say=lines.append)
    told = {(row["section"], row["name"]): row for row in map(json.loads, lines)}
    failed = [row for row in told.values() if row["state"] == "fail"]
    assert code == exit_code([Finding("x", "fail", "", row["code"]) for row in failed])
    for wanted in (
        ("software", "SQLite"),
        ("software", "libzmq"),
        ("runtimes", "ort-cpu"),
        ("disk", "fsync"),
        ("machine", "/dev/shm"),
        ("machine", "clock"),
        ("ports", "bus.ctl_port"),
    ):
        assert wanted in told
    assert not [row for row in failed if row["section"] != "bundle"]


def test_the_exit_code_is_that_of_the_first_failure():
    findings = [
        Finding("a", "warn", "", 5),
        Finding("b", "fail", "", 9),
        Finding("c", "fail", "", 8),
    ]
    assert exit_code(findings) == 9
    assert exit_code(findings[:1]) == 0


def test_a_full_disk_is_exit_6(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_machine, "free_bytes", lambda folder: 1000)
    changed = settings(tmp_path, ledger={"path": tmp_path / "l.db", "min_free_bytes": 1 << 20})
    found = {f.name: f for f in doctor_machine.disks(changed)}
    assert (found["ledger"].state, found["ledger"].code) == ("fail", 6)
    assert found["archive"].state == "ok"


def test_a_port_held_by_another_program_is_exit_9(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = {f.name: f for f in doctor_machine.ports(settings(tmp_path, ui={"port": port}))}
    assert (found["ui.port"].state, found["ui.port"].code) == ("fail", 9)
    assert "set ui.port" in found["ui.port"].text


def test_a_running_station_is_no_fault(tmp_path):
    station = uistation.ScriptedStation(tmp_path / "ledger.db")
    try:
        ports = {
            "ctl_port": int(station.bus.ctl_address.rsplit(":", 1)[1]),
            "pub_port": int(station.bus.pub_address.rsplit(":", 1)[1]),
        }
        found = {f.name: f for f in doctor_machine.ports(settings(tmp_path, bus=ports))}
    finally:
        station.close()
    assert found["bus.ctl_port"].state == "ok"
    assert "a station answers" in found["bus.ctl_port"].text


def test_an_unknown_recipe_is_exit_8_and_a_damaged_one_a_warning(tmp_path):
    uistation.make_recipe(tmp_path / "recipes", "broken")
    changed = settings(tmp_path, recipe={"root": tmp_path / "recipes", "name": "gone"})
    found = {f.name: f for f in doctor_product.recipes(changed)}
    assert (found["gone"].state, found["gone"].code) == ("fail", 8)
    assert found["broken"].state == "warn"


def test_a_check_that_breaks_does_not_hide_the_others(tmp_path, monkeypatch):
    def broken(_settings):
        raise ZeroDivisionError("boom")

    def refused(_settings):
        raise EngineError("bundle x: file y differs")

    def good(_settings):
        yield Finding("last", "ok", "fine")

    monkeypatch.setattr(doctor, "checks", lambda: (("a", broken), ("b", refused), ("c", good)))
    lines = []
    assert run_doctor(settings(tmp_path), say=lines.append) == 1
    text = "\n".join(lines)
    assert "the check itself failed: ZeroDivisionError: boom" in text
    assert "bundle x: file y differs" in text
    assert "last: fine" in text


def test_camera_modes_are_read_from_the_drivers_answers(monkeypatch):
    yuyv = struct.unpack("<I", b"YUYV")[0]

    def ask(device, request, buffer):
        if request == doctor_cameras.QUERYCAP:
            struct.pack_into("<16s32s", buffer, 0, b"uvcvideo", b"Line camera")
            struct.pack_into("<II", buffer, 84, 0x84A00001, 0x04200001)
        elif request == doctor_cameras.ENUM_FMT:
            index = struct.unpack_from("<I", buffer)[0]
            if index:
                raise OSError(22, "Invalid argument")
            struct.pack_into("<I", buffer, 44, yuyv)
        else:
            index = struct.unpack_from("<I", buffer)[0]
            if index > 1:
                raise OSError(22, "Invalid argument")
            struct.pack_into("<III", buffer, 8, 1, (640, 1280)[index], (480, 720)[index])

    monkeypatch.setattr(doctor_cameras, "_ask", ask)
    assert doctor_cameras.capture_card(Path("/dev/video0")) == "Line camera"
    (mode,) = doctor_cameras.modes(Path("/dev/video0"))
    assert str(mode) == "YUYV up to 1280x720 (2 sizes)"


def test_a_missing_camera_is_a_warning_that_says_what_to_set(tmp_path):
    changed = settings(tmp_path, source={"spec": "/dev/v4l/by-id/none"})
    found = {f.name: f for f in doctor_cameras.cameras(changed)}
    assert found["source.spec"].state == "warn"
    assert "set source.spec" in found["source.spec"].text


@pytest.mark.parametrize("spec", ["parts", "http://camera/stream"])
def test_folders_and_streams_need_no_camera(tmp_path, spec):
    changed = settings(tmp_path, source={"spec": spec})
    names = [f.name for f in doctor_cameras.cameras(changed)]
    assert "source.spec" not in names
    assert uikit.part_picture(1).shape == (360, 480, 3)
