"""`station ctl`: what an admin may order from a shell, and what it says when that was not done."""

import pytest
from buskit import FastStation
from securitykit import key_folder, keyed_station  # noqa: F401
from typer.testing import CliRunner

from engines.errors import ConfigError, RecipeError, StationError, UsageError
from station.cli import app
from station.schema_ctl import ModeCommand, RecipeCommand, Reset


@pytest.fixture
def ctl(tmp_path):
    """Runs `station ctl` against a station's ROUTER; (output, what it raised)."""
    config = tmp_path / "station.toml"
    config.write_text("")

    def run(address, *words):
        words = ("ctl", *words, "--config", config, "--ctl", address)
        done = CliRunner().invoke(app, list(map(str, words)))
        return done.stdout, done.exception

    return run


@pytest.fixture
def open_station(tmp_path):
    made = FastStation(tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (
            ("recipe", "prepare", "lid2", "--camera", "top"),
            RecipeCommand(rid="2", action="prepare", recipe="lid2", camera="top"),
        ),
        (("recipe", "prepare", "b"), RecipeCommand(rid="2", action="prepare", recipe="b")),
        (("recipe", "commit"), RecipeCommand(rid="2", action="commit")),
        (("recipe", "commit", "--force"), RecipeCommand(rid="2", action="commit", force=True)),
        (("recipe", "rollback"), RecipeCommand(rid="2", action="rollback")),
        (("mode", "stopped"), ModeCommand(rid="2", mode="stopped")),
        (("reset",), Reset(rid="2")),
    ],
    ids=str,
)
def test_every_order_reaches_the_station_and_its_answer_the_shell(
    open_station, ctl, words, command
):
    output, error = ctl(open_station.bus.ctl_address, *words)
    assert error is None and output == "done: ms 1\n"
    (given,) = open_station.admins
    assert given.model_copy(update={"session": None}) == command


def test_what_the_station_does_not_do_is_one_sentence(open_station, ctl, monkeypatch):
    monkeypatch.setattr(open_station, "on_admin", lambda _c, reply: reply.refused("no such recipe"))
    for words, kind in ((("recipe", "commit"), RecipeError), (("reset",), StationError)):
        _, error = ctl(open_station.bus.ctl_address, *words)
        assert type(error) is kind and str(error) == "the station did not do it: no such recipe"


def test_an_answer_without_facts_is_done(open_station, ctl, monkeypatch):
    monkeypatch.setattr(open_station, "on_admin", lambda _command, reply: reply.done())
    assert ctl(open_station.bus.ctl_address, "reset") == ("done\n", None)


def test_a_station_that_is_not_there_and_a_wrong_address(ctl, monkeypatch):
    monkeypatch.setattr("station.client.Client._receive", lambda *_: None)
    _, error = ctl("tcp://127.0.0.1:9", "reset")
    assert type(error) is StationError and "station doctor" in str(error) and "--key" in str(error)
    _, error = ctl("127.0.0.1:9", "reset")
    assert type(error) is ConfigError


def test_only_an_admins_key_may(station, tmp_path, ctl):
    for role in ("gateway", "observer"):
        _, error = ctl(station.bus.ctl_address, "reset", "--key", tmp_path / f"{role}.json")
        assert type(error) is UsageError and "needs the key of an admin" in str(error)
    assert station.admins == []
    output, error = ctl(station.bus.ctl_address, "reset", "--key", tmp_path / "admin.json")
    assert error is None and output.startswith("done")
