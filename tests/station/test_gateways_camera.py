"""A station of several cameras: a gateway puts its camera's name before every part id."""

import pytest
from typer.testing import CliRunner

from engines.errors import ConfigError
from station.cli import app
from station.gateways.bridge import Bridge
from station.gateways.options import camera_override, camera_prefix
from station.settings import load_settings
from tests.station.test_gateways_late import UP, opcua_inspect, part_prefix  # noqa: F401

CAMERAS = {"cameras": {"top": {"spec": "a"}, "side": {"spec": "b"}}}


def settings(tmp_path, camera=None, cameras=CAMERAS):
    file = tmp_path / "station.toml"
    file.write_text("")
    return load_settings(file, cameras | camera_override(camera))


@pytest.mark.parametrize(("camera", "part_id"), [("", "42"), ("side/", "side/42")])
def test_modbus_a_part_is_its_number_behind_the_name_of_its_camera(camera, part_id):
    sent = []
    bridge = Bridge(lambda *order: sent.append(order[1]), deadline_ms=1000, camera=camera)
    bridge.on_health(UP)
    bridge.write([0, 0, 0, 0, 0])
    bridge.write([1, 0, 42, 0, 0])
    assert sent == [part_id]


@pytest.mark.parametrize("camera", ["side/"], indirect=True)
@pytest.mark.parametrize(("part_id", "sent"), [("P-1", "side/P-1"), ("", "side/42")])
def test_opcua_a_part_id_begins_with_the_name_of_its_camera(opcua, part_id, sent):
    answer, orders = opcua(part_id, 0, 0.0)
    assert answer == (1, 1) and orders[0][1] == sent


def test_a_gateway_of_several_cameras_must_be_told_which(tmp_path):
    with pytest.raises(ConfigError, match=r"cameras top, side: say in gateway\.camera"):
        camera_prefix(settings(tmp_path), needed=True)
    assert camera_prefix(settings(tmp_path), needed=False) == ""  # OPC UA: the client may say it
    assert camera_prefix(settings(tmp_path, "side"), needed=True) == "side/"


def test_a_camera_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="'left': the station's cameras are top, side"):
        camera_prefix(settings(tmp_path, "left"), needed=True)
    with pytest.raises(ConfigError, match=r"gateway\.camera"):
        settings(tmp_path, "a/b")


def test_one_camera_needs_no_name_and_a_gateway_elsewhere_takes_any(tmp_path):
    one = {"cameras": {"top": {"spec": "a"}}}
    assert camera_prefix(settings(tmp_path, cameras=one), needed=True) == ""
    assert camera_prefix(settings(tmp_path, cameras={}), needed=True) == ""
    assert camera_prefix(settings(tmp_path, "side", {}), needed=True) == "side/"


@pytest.mark.parametrize("protocol", ["modbus", "opcua"])
def test_the_command_line_says_which_cameras_there_are(tmp_path, protocol):
    file = tmp_path / "station.toml"
    file.write_text("[cameras.top]\nspec = 'a'\n[cameras.side]\nspec = 'b'\n")
    words = ["gateway", protocol, "--config", str(file), "--camera", "left"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError) and "top, side" in str(done.exception)


def test_a_gateways_deadline_is_bounded_as_the_bus_bounds_it(tmp_path):
    with pytest.raises(ConfigError, match="600001"):
        settings(tmp_path, cameras={"gateway": {"deadline_ms": 600_001}})
