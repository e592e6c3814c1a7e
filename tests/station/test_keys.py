"""Keys and roles: secret files, names, who may do what, revocation."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from securitykit import audit_lines, connect, key_folder, keyed_station  # noqa: F401

from engines.errors import ConfigError, UsageError
from station.cli import _run
from station.client import NoAnswer, Refused
from station.keys import (
    Role,
    list_clients,
    load_identity,
    new_client,
    revoke_client,
)
from station.schema import new_id
from station.schema_ctl import parse_command
from station.security import ALLOWED, LOCAL, Access, may

COMMANDS = {
    "HELLO": {"client": "x"},
    "TRIGGER": {"trigger_id": "0" * 16},
    "FETCH": {"stream": "result", "epoch": "0" * 16, "from_seq": 1},
    "ACK": {"stream": "result", "upto_seq": 1},
    "LATEST": {"stream": "result"},
    "GET": {"image_ref": "x"},
    "STATUS": {},
    "PING": {},
    "RECIPE": {"action": "rollback"},
    "MODE": {"mode": "free_run"},
    "RESET": {},
}


# -- key files -----------------------------------------------------------------------------------


def test_key_files_are_secret_and_the_private_half_leaves_the_station(tmp_path, keys):
    identity = load_identity(tmp_path / "gateway.json")
    for file in (keys / "station.json", tmp_path / "gateway.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert identity.secret not in (keys / "clients" / "the-gateway.json").read_text()
    assert [c.name for c in list_clients(keys)] == ["the-admin", "the-gateway", "the-observer"]


def test_names_are_unique_until_revoked_and_files_are_not_overwritten(tmp_path, keys):
    with pytest.raises(UsageError, match="exists"):
        new_client(keys, "the-admin", Role.ADMIN, tmp_path / "other.json")
    with pytest.raises(UsageError, match="exists already"):
        new_client(keys, "fresh", Role.ADMIN, tmp_path / "admin.json")
    revoke_client(keys, "the-admin")
    new_client(keys, "the-admin", Role.OBSERVER, tmp_path / "other.json")
    for name in ("../evil", "nobody", ""):
        with pytest.raises(UsageError):
            revoke_client(keys, name)
    for name in ("../evil", "a b", "", "x" * 65):
        with pytest.raises(UsageError):
            new_client(keys, name, Role.ADMIN, tmp_path / "bad.json")


@pytest.mark.parametrize("damage", ["", "{}", "no json", '{"public": 1}'])
def test_a_damaged_key_file_is_one_sentence(tmp_path, keys, damage):
    (keys / "station.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"station\.json") as caught:
        Access(keys)
    assert "\n" not in str(caught.value) and caught.value.code == 3
    with pytest.raises(ConfigError, match="station keys new"):
        Access(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        load_identity(tmp_path / "nothing.json")


def test_a_damaged_client_file_is_no_key_and_hurts_nobody_else(keys):
    access = Access(keys)
    assert len(access) == 3
    (keys / "clients" / "the-admin.json").write_text("{")
    assert len(access.reload()) == 1 and len(access) == 2


def test_keys_on_the_command_line(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", "from station.keys_cli import app; app()", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path.cwd()), "COLUMNS": "200"},
        )

    assert run("new", "plc1", "--role", "gateway", "--out", "plc1.json").returncode == 0
    assert run("new", "screen").returncode == 0
    listed = run("list").stdout
    assert "plc1" in listed and "gateway" in listed and "screen" in listed
    assert "revoked" in run("revoke", "plc1").stdout
    assert "revoked" in run("list").stdout
    assert load_identity(tmp_path / "screen.key.json").role == "observer"


def test_a_damaged_key_of_the_station_is_not_to_be_healed_by_the_command_that_finds_it(
    tmp_path, keys
):
    whole = (keys / "station.json").read_bytes()
    (keys / "station.json").write_text("{}")
    with pytest.raises(ConfigError, match="put a copy of it back; or remove it") as caught:
        new_client(keys, "c1", Role.OBSERVER, tmp_path / "c1.json")
    assert not str(caught.value).endswith("make a new one with `station keys new`")
    assert not (tmp_path / "c1.json").exists() and len(list_clients(keys)) == 3
    (keys / "station.json").write_bytes(whole)
    (keys / "clients" / "the-admin.json").write_text("{}")
    with pytest.raises(ConfigError, match="remove it, and make a new one"):
        new_client(keys, "the-admin", Role.ADMIN, tmp_path / "a.json")
    (keys / "clients" / "the-admin.json").unlink()
    new_client(keys, "the-admin", Role.ADMIN, tmp_path / "a.json")


def test_a_folder_of_keys_that_is_none_or_empty_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("mine")
    for words in (("list",), ("new", "c1"), ("revoke", "c1")):
        assert _run(["keys", *words, "--keys", "text.txt"]) == 2
        assert "text.txt is a file" in capsys.readouterr().err
    assert _run(["keys", "list"]) == 0
    assert "var/keys holds no keys" in capsys.readouterr().err
    assert Path("text.txt").read_text() == "mine" and list(tmp_path.iterdir()) == [
        tmp_path / "text.txt"
    ]


def test_keys_are_those_of_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text("[bus]\nkeys = 'own'\n")
    assert _run(["keys", "new", "c1", "--config", "s.toml"]) == 0
    assert [c.name for c in list_clients(tmp_path / "own")] == ["c1"]


# -- roles ---------------------------------------------------------------------------------------

MAY = {
    "observer": {"HELLO", "FETCH", "LATEST", "GET", "STATUS", "PING"},
    "gateway": {"HELLO", "FETCH", "GET", "STATUS", "PING", "TRIGGER", "ACK"},
    "admin": {"HELLO", "FETCH", "LATEST", "GET", "STATUS", "PING", "RECIPE", "MODE", "RESET"},
    "local": set(COMMANDS),
    "": set(),
    "stranger": set(),
}


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("cmd", COMMANDS)
def test_the_table_of_roles(role, cmd):
    command = parse_command(json.dumps({"cmd": cmd, "rid": "1", **COMMANDS[cmd]}).encode())
    assert may(role, command) == (cmd in MAY[role])
    assert set(ALLOWED) == {*map(str, Role), LOCAL}


def test_only_a_gateway_triggers_and_acknowledges(station, tmp_path, keys):
    with connect(station, tmp_path / "gateway.json", name="plc") as gateway:
        assert gateway.hello().role == "gateway"
        assert gateway.trigger(new_id()).accept and gateway.ack("result", 1).upto_seq == 1
        assert gateway.hello().cursors == {"result": 1}
        with pytest.raises(Refused, match="denied"):
            gateway.latest("result")
        with pytest.raises(Refused, match="denied"):
            gateway.admin("RESET")
    assert station.ledger.cursors == {"the-gateway/plc": {"result": 1}}
    for role in ("observer", "admin"):
        with connect(station, tmp_path / f"{role}.json") as client:
            assert client.latest("result").seq == 1
            with pytest.raises(Refused, match="denied"):
                client.trigger(new_id())
            with pytest.raises(Refused, match="denied"):
                client.ack("result", 1)
    with connect(station, tmp_path / "admin.json") as admin:
        assert admin.admin("RESET").reply == "done"
    assert len(station.triggers) == 1 and station.ledger.last_seq("result") == 1
    denied = [line for line in audit_lines(keys) if line["what"] == "denied"]
    assert {(d["client"], d["command"]) for d in denied} == {
        ("the-gateway", "LATEST"),
        ("the-gateway", "RESET"),
        ("the-observer", "TRIGGER"),
        ("the-observer", "ACK"),
        ("the-admin", "TRIGGER"),
        ("the-admin", "ACK"),
    }


def test_a_session_is_worth_nothing_to_another_key(station, tmp_path):
    new_client(tmp_path / "keys", "other", Role.GATEWAY, tmp_path / "other.json")
    station.bus.reload_keys()
    with connect(station, tmp_path / "gateway.json") as mine:
        mine.hello()
        with connect(station, tmp_path / "other.json") as thief:
            thief.hello()
            thief.session = mine.session
            with pytest.raises(Refused, match="hello_first"):
                thief.trigger(new_id())


def test_a_revoked_key_is_cut_off_at_reload(station, tmp_path, keys):
    with connect(station, tmp_path / "observer.json", timeout_s=10) as watcher:
        bodies = watcher.subscribe(("status",), timeout_s=2.0)
        assert next(body for body in bodies if body is not None).ready and watcher.ping()
        with connect(station, tmp_path / "admin.json", timeout_s=10) as admin:
            seen = admin.subscribe(("status",), timeout_s=2.0)
            assert next(body for body in seen if body is not None)
            revoke_client(keys, "the-observer")
            assert watcher.ping(), "nothing changes before SIGHUP"
            assert station.bus.reload_keys() == 2
            with pytest.raises(Refused, match="denied"):
                watcher.ping()
            end = time.monotonic() + 30
            while next(bodies) is not None:
                assert time.monotonic() < end, "it still hears the station"
            assert next(bodies) is None
            while next(seen) is None:
                assert time.monotonic() < end + 5, "the others come back"


def test_a_new_key_is_taken_at_reload(station, tmp_path, keys):
    new_client(keys, "late", Role.OBSERVER, tmp_path / "late.json")
    with connect(station, tmp_path / "late.json", timeout_s=2.5) as late:
        with pytest.raises(NoAnswer):
            late.ping()
        assert station.bus.reload_keys() == 4
        assert late.ping().reply == "pong"
