"""`station replay --verify` over what a running station recorded: sound recordings verify."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from faultkit.camera import FaultCamera
from faultkit.engines import FakeEngine, FakeRoom, fake_recipe
from faultkit.station import parts_folder, settings_in, show, station, until

from engines.errors import RecipeError, VerifyMismatch
from station import cli_run
from station import replay as replay_module
from station.daemon import Daemon
from station.inspection import Product
from station.schema import new_id

LIMITS = {"test": 0.9, "strict": 0.3}  # the fake engine says mean brightness, about .47


class Recipes(FakeRoom):
    """Two recipes with limits on either side of every part; others are unknown."""

    def product(self, name):
        if name is not None and name not in LIMITS:
            raise RecipeError(f"recipe {name!r} is unknown")
        loaded = name and replace(
            fake_recipe(name, LIMITS[name]), sha={"test": "a", "strict": "c"}[name] * 64
        )
        anchors = np.zeros((2, 4), np.float32)
        return Product(self.engine, loaded or None, "b" * 64, anchors, self.shape)


@pytest.fixture
def replayed(tmp_path, monkeypatch):
    """Replays `folder` with these options and a fake engine; what it printed is the test's."""

    def run(room, **options):
        real = replay_module.run

        def with_room(settings, config, given):
            given.engine = room
            return real(settings, config, given)

        with monkeypatch.context() as patch:
            patch.setattr(replay_module, "run", with_room)
            settings = settings_in(tmp_path, "unused", recipe={"name": "strict"})
            return replay_module.replay(settings, tmp_path / "rec", **options)

    return run


def recorded(tmp_path):
    return {"enabled": True, "folder": tmp_path / "rec", "every_ok": 1, "min_free_bytes": 0}


def test_a_frozen_camera_and_a_wrong_size_verify(tmp_path, replayed, capsys):
    shape = (240, 320)
    with (
        FaultCamera(fps=25) as camera,
        station(
            tmp_path,
            camera.url,
            trigger={"by": "bus"},
            recipe_kw={"shape": shape},
            record=recorded(tmp_path),
        ) as (daemon, client),
    ):
        until(lambda: daemon.readiness.evaluate()[0])
        seen = Counter()
        for mode in ("ok", "freeze", "ok", "size", "truncate", "black", "ok"):
            camera.mode = mode
            until(lambda: daemon.lanes[""].source.read(0) is None)
            seen.update(str(show(client)[1]) for _ in range(2))
    assert seen["score"] and seen["stale_frame"] and seen["camera"], seen
    assert replayed(FakeRoom(shape=shape), verify=True) == 0
    assert f"verified: {seen.total()} parts, 0 differ" in capsys.readouterr().out


def test_a_changeover_inside_the_file_is_made_again(tmp_path, replayed, capsys):
    folder = parts_folder(tmp_path / "in", 8)
    room = Recipes(FakeEngine())
    options = {"engine": room}
    with _station(tmp_path, folder, options, record=recorded(tmp_path)) as (_, client):
        verdicts = [show(client)[0] for _ in range(2)]
        client.admin("RECIPE", action="prepare", recipe="strict")
        client.admin("RECIPE", action="commit")
        verdicts += [show(client)[0] for _ in range(2)]
    assert verdicts == ["OK", "OK", "NG", "NG"]
    assert replayed(room, verify=True) == 0
    assert "verified: 4 parts, 0 differ" in capsys.readouterr().out
    # Asked by name, one recipe judges all: what would have happened.
    assert replayed(room, recipe="strict") == 0
    told = capsys.readouterr().out
    assert "4 parts, 2 would get another verdict (2 OK -> NG)" in told
    assert "not as recorded: recipe strict aaaaaaaa -> cccccccc" in told
    with pytest.raises(VerifyMismatch, match="2 of 4 parts differ"):
        replayed(room, recipe="strict", verify=True)


def test_a_worker_that_takes_long_to_end_does_not_end_the_replay_before_its_table(
    tmp_path, replayed, monkeypatch
):
    folder = parts_folder(tmp_path / "in", 3)
    room = Recipes(FakeEngine())
    with _station(tmp_path, folder, {"engine": room}, record=recorded(tmp_path)) as (_, client):
        show(client)
    monkeypatch.setattr(Daemon, "hanging", lambda _self: True)
    monkeypatch.setattr(cli_run.os, "_exit", lambda code: pytest.fail(f"left with {code}"))
    with pytest.raises(VerifyMismatch):
        replayed(room, recipe="strict", verify=True)


def test_two_cameras_with_two_recipes_verify(tmp_path, replayed, capsys):
    folder = parts_folder(tmp_path / "in", 4)
    room = Recipes(FakeEngine())
    cameras = {
        "top": {"spec": str(folder), "recipe": "test", "loop": True},
        "side": {"spec": str(folder), "recipe": "strict", "loop": True},
    }
    with _station(
        tmp_path, folder, {"engine": room}, cameras=cameras, record=recorded(tmp_path)
    ) as (_, client):
        for n in range(3):
            for camera, verdict in (("top", "OK"), ("side", "NG")):
                assert client.trigger(new_id(), part_id=f"{camera}/{n}").verdict == verdict
    assert replayed(room, verify=True) == 0
    assert "verified: 6 parts, 0 differ" in capsys.readouterr().out


def test_a_recipe_that_is_gone_is_named(tmp_path, replayed, monkeypatch):
    folder = parts_folder(tmp_path / "in", 4)
    room = Recipes(FakeEngine())
    with _station(tmp_path, folder, {"engine": room}, record=recorded(tmp_path)) as (_, client):
        show(client)
        client.admin("RECIPE", action="prepare", recipe="strict")
        client.admin("RECIPE", action="commit")
        show(client)
    monkeypatch.delitem(LIMITS, "strict")
    with pytest.raises(RecipeError, match="recipe 'strict' is unknown"):
        replayed(room, verify=True)


def _station(tmp_path, folder, options, **sections):
    return station(
        tmp_path,
        str(folder),
        trigger={"by": "bus"},
        source={"loop": True},
        options=options,
        **sections,
    )
