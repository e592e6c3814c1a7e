"""What was decided over the bus outlives a restart; a newer configuration wins over it."""

import pytest
from faultkit.engines import FakeEngine, FakeRoom
from faultkit.station import parts_folder, station, until

from engines.errors import RecipeError
from station.client import Refused
from station.schema import new_id

ON_TRIGGER = {"trigger": {"by": "bus"}, "source": {"loop": True}}


@pytest.fixture
def line(tmp_path):
    """Starts this station as often as asked, always on the same ledger."""
    folder = parts_folder(tmp_path / "in", 3)

    def start(**changes):
        return station(tmp_path, str(folder), FakeEngine(), **{**ON_TRIGGER, **changes})

    return start


def commit(client, recipe):
    client.admin("RECIPE", action="prepare", recipe=recipe)
    client.admin("RECIPE", action="commit")


def judged_by(daemon, client):
    until(lambda: daemon.readiness.evaluate()[0])
    return client.trigger(new_id()).recipe


def test_a_restart_judges_by_the_recipe_that_was_committed(line):
    with line() as (daemon, client):
        assert judged_by(daemon, client) == "test"
        commit(client, "lid2")
    with line() as (daemon, client):
        assert judged_by(daemon, client) == "lid2"
        told = [b for b in client.fetch_all("event") if b"as decided before the restart" in b]
        assert len(told) == 1
        client.admin("RECIPE", action="prepare", recipe="test")
        client.admin("RECIPE", action="commit")
    with line() as (daemon, client):
        assert judged_by(daemon, client) == "test"


def test_another_name_in_the_configuration_is_the_newer_decision(line, tmp_path):
    with line() as (daemon, client):
        commit(client, "lid2")
    renamed = {"recipe": {"name": "cap", "root": tmp_path / "recipes"}}
    with line(**renamed) as (daemon, client):
        assert judged_by(daemon, client) == "cap"


def test_a_station_that_was_stopped_stays_stopped(line):
    with line() as (daemon, client):
        client.admin("MODE", mode="stopped")
    with line() as (daemon, client):
        assert daemon.mode == "stopped"
        assert not daemon.readiness.evaluate()[0]
        client.admin("MODE", mode="triggered")
        assert judged_by(daemon, client) == "test"
    with line() as (daemon, client):
        assert daemon.mode == "triggered"


def test_a_commit_that_is_not_durable_changes_nothing(line, monkeypatch):
    with line() as (daemon, client):
        client.admin("RECIPE", action="prepare", recipe="lid2")

        def broken(*_args):
            raise OSError("no space left")

        monkeypatch.setattr(daemon.ledger._store, "keep_meta", broken)
        with pytest.raises(Refused, match="cannot be written"):
            client.admin("RECIPE", action="commit")
        monkeypatch.undo()
        assert judged_by(daemon, client) == "test"


def test_an_overruled_decision_does_not_come_back_with_the_old_name(line, tmp_path):
    with line() as (daemon, client):
        commit(client, "lid2")
    with line(recipe={"name": "cap", "root": tmp_path / "recipes"}) as (daemon, client):
        assert judged_by(daemon, client) == "cap"
    with line() as (daemon, client):
        assert judged_by(daemon, client) == "test"


def test_a_decision_whose_recipe_is_gone_is_told_and_forgotten(line, monkeypatch):
    with line() as (daemon, client):
        commit(client, "lid2")
    true = FakeRoom.product

    def product(self, name):
        if name == "lid2":
            raise RecipeError("no recipe 'lid2'")
        return true(self, name)

    monkeypatch.setattr(FakeRoom, "product", product)
    with pytest.raises(RecipeError, match=r"no recipe 'lid2' \(it was committed over the bus"):
        line().__enter__()
    with line() as (daemon, client):
        assert judged_by(daemon, client) == "test"


def test_a_part_is_judged_by_the_recipe_it_was_opened_with(line):
    """Whatever moment the changeover chooses: one look at the products for both."""
    with line() as (daemon, client):
        until(lambda: daemon.readiness.evaluate()[0])
        old, looks = daemon.products, []
        new = {lane: daemon.room.product("lid2") for lane in old}

        class Products(dict):
            def __getitem__(self, lane):
                looks.append(lane)
                return (old if len(looks) % 2 else new)[lane]

        daemon.products = Products(old)
        for _part in range(6):
            opening, product = daemon.openings.own(None, next(iter(old)))
            assert opening.recipe == product.name
            assert client.trigger(new_id()).recipe in ("test", "lid2")
        daemon.products = old


def test_an_admin_who_comes_too_early_is_answered(line):
    with line() as (daemon, client):
        daemon.started = False
        for command in ({"cmd": "MODE", "mode": "stopped"}, {"cmd": "RESET"}):
            with pytest.raises(Refused, match="the station is starting"):
                client.admin(**command)
        daemon.started = True
