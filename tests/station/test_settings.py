"""One configuration file: order of precedence, and mistakes that name file, line and key."""

import tomllib
from pathlib import Path

import pytest

from engines.errors import ConfigError
from station.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]


def test_a_misspelt_key_names_its_line_and_the_nearest_key(tmp_path):
    file = tmp_path / "station.toml"
    file.write_text("[bus]\npub_port = 1\n\n[engine]\n# a comment\nbundel = 'x'\n")
    with pytest.raises(ConfigError) as error:
        load_settings(file)
    assert (
        str(error.value) == f"{file}, line 6: unknown key 'engine.bundel'; did you mean 'bundle'?"
    )
    assert error.value.code == 3


def test_a_misspelt_table_names_its_line(tmp_path):
    file = tmp_path / "station.toml"
    file.write_text("[station]\nname = 'a'\n[ledgre]\npath = 'x'\n")
    with pytest.raises(ConfigError, match=r"line 3: unknown key 'ledgre'; did you mean 'ledger'"):
        load_settings(file)


def test_a_wrong_value_names_line_key_and_value(tmp_path):
    file = tmp_path / "station.toml"
    file.write_text("[bus]\npub_port = 70000\n")
    with pytest.raises(ConfigError, match=r"line 2: bus.pub_port = 70000: .*65535"):
        load_settings(file)


def test_text_that_is_no_toml_names_the_line(tmp_path):
    file = tmp_path / "station.toml"
    file.write_text("[bus\n")
    with pytest.raises(ConfigError, match="line 1"):
        load_settings(file)


def test_command_line_beats_environment_beats_file(tmp_path, monkeypatch):
    file = tmp_path / "station.toml"
    file.write_text("[bus]\npub_port = 1\nctl_port = 2\nstatus_ms = 100\n")
    monkeypatch.setenv("STATION_BUS__PUB_PORT", "11")
    monkeypatch.setenv("STATION_BUS__CTL_PORT", "12")
    bus = load_settings(file, {"bus": {"pub_port": 21}}).bus
    assert (bus.pub_port, bus.ctl_port, bus.status_ms) == (21, 12, 100)


def test_a_wrong_environment_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("STATION_TRIGGER__IN_FLIGHT", "many")
    (tmp_path / "s.toml").write_text("")
    with pytest.raises(ConfigError, match="environment STATION_TRIGGER__IN_FLIGHT"):
        load_settings(tmp_path / "s.toml")


def test_a_file_that_was_named_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_settings(tmp_path / "nope.toml")


def test_an_open_bind_without_keys_is_refused(tmp_path):
    file = tmp_path / "station.toml"
    file.write_text("[bus]\nhost = '0.0.0.0'\n")
    with pytest.raises(ConfigError, match="reachable from outside"):
        load_settings(file)
    assert load_settings(file, {"bus": {"insecure": True}}).bus.insecure


def test_station_toml_shows_every_key_with_its_default():
    """The shipped file names every key there is (optional ones commented) and changes nothing."""
    text = (ROOT / "station.toml").read_text()
    shown = tomllib.loads(text)
    for table, field in Settings.model_fields.items():
        if table == "cameras":
            assert "[cameras." in text
            continue
        section = field.annotation
        values = shown[table]
        for key in section.model_fields:
            if key not in values:
                assert f"# {key} =" in text, f"station.toml does not show {table}.{key}"
    assert load_settings(ROOT / "station.toml").model_dump() == Settings().model_dump()


def test_every_key_of_station_toml_has_a_comment_near():
    """Each table has at least one explanation; a budget may share its neighbour's."""
    for block in (ROOT / "station.toml").read_text().split("\n[")[1:]:
        assert "#" in block, block.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("STATION_LEDGRE__PATH", r"STATION_LEDGRE__PATH: no such setting; did you mean 'ledger'"),
        ("STATION_BUS__PUBPORT", r"STATION_BUS__PUBPORT: no such setting; did you mean 'pub_port'"),
    ],
)
def test_a_variable_that_names_no_setting_is_refused(tmp_path, monkeypatch, name, told):
    monkeypatch.setenv(name, "x")
    with pytest.raises(ConfigError, match=told):
        load_settings(empty(tmp_path))


def test_variables_that_are_none_of_the_settings_may_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("STATION_CACHE", str(tmp_path))
    monkeypatch.setenv("STATION_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("STATION_CAMERAS__LEFT__SPEC", "folder")
    monkeypatch.setenv("STATION_BUS__PUB_PORT", "7000")
    found = load_settings(empty(tmp_path))
    assert found.bus.pub_port == 7000 and found.sources()["left"].spec == "folder"


def test_the_name_of_a_camera_is_part_of_a_part_id(tmp_path):
    with pytest.raises(ConfigError, match="a/b"):
        load_settings(empty(tmp_path), {"cameras": {"a/b": {"spec": "x"}}})


@pytest.mark.parametrize("fps", [1e-300, 1e-4, -1.0, float("nan"), float("inf")])
def test_a_pace_at_which_no_frame_ever_comes_is_refused(tmp_path, fps):
    with pytest.raises(ConfigError, match=r"command line: source.fps = "):
        load_settings(empty(tmp_path), {"source": {"fps": fps}})
    assert load_settings(empty(tmp_path), {"source": {"fps": 0.001}}).source.fps == 0.001


def empty(folder):
    file = folder / "station.toml"
    file.write_text("")
    return file
