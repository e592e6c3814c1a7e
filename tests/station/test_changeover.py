"""Changeover of several cameras, and of a recipe that cannot be loaded at all."""

import pytest
from faultkit.engines import FakeEngine
from faultkit.station import parts_folder, station

from station.client import Refused
from station.schema import new_id

BUS = {"by": "bus"}


@pytest.fixture
def line(tmp_path):
    """(daemon, client) of a station whose cameras have these recipes."""

    def start(**recipes):
        cameras = {
            name: {"spec": str(parts_folder(tmp_path / name, 3)), "recipe": recipe, "loop": True}
            for name, recipe in recipes.items()
        }
        more = {"cameras": cameras} if recipes else {"source": {"loop": True}}
        return station(
            tmp_path, str(parts_folder(tmp_path / "in", 3)), FakeEngine(), trigger=BUS, **more
        )

    return start


def judged_by(client, *cameras):
    return [client.trigger(new_id(), part_id=f"{camera}/1").recipe for camera in cameras]


def test_a_changeover_of_one_camera_leaves_the_others_alone(line):
    with line(top="lid", side="label") as (_, client):
        client.admin("RECIPE", action="prepare", recipe="lid2", camera="top")
        done = client.admin("RECIPE", action="commit").data
        assert done["recipe"] == "lid2"
        assert judged_by(client, "top", "side") == ["lid2", "label"]
        client.admin("RECIPE", action="prepare", recipe="label2", camera="side")
        assert client.admin("RECIPE", action="commit").data["recipe"] == "label2"
        assert judged_by(client, "top", "side") == ["lid2", "label2"]
        assert client.admin("RECIPE", action="rollback").data["recipe"] == "label"
        assert judged_by(client, "top", "side") == ["lid2", "label"]
        told = [body for body in client.fetch_all("event") if b"recipe is now" in body]
        assert b"lid2 (cameras top)" in told[0] and b"label (cameras side)" in told[-1]


def test_a_changeover_that_names_no_camera_is_refused_where_it_would_be_a_guess(line):
    with line(top="lid", side="label") as (_, client):
        with pytest.raises(Refused, match=r"top: lid, side: label.*say for which"):
            client.admin("RECIPE", action="prepare", recipe="lid2")
        with pytest.raises(Refused, match=r"no camera left here .top: lid, side: label"):
            client.admin("RECIPE", action="prepare", recipe="lid2", camera="left")
        with pytest.raises(Refused, match="nothing is prepared"):
            client.admin("RECIPE", action="commit")
        with pytest.raises(Refused, match="only prepare takes a camera"):
            client.admin("RECIPE", action="commit", camera="top")
        assert judged_by(client, "top", "side") == ["lid", "label"]


def test_cameras_of_one_product_change_over_together(line):
    with line(top="lid", side="lid") as (_, client):
        client.admin("RECIPE", action="prepare", recipe="lid2")
        client.admin("RECIPE", action="commit")
        assert judged_by(client, "top", "side") == ["lid2", "lid2"]


def test_the_only_camera_has_no_name(line):
    with line() as (_, client), pytest.raises(Refused, match="the only one has no name"):
        client.admin("RECIPE", action="prepare", recipe="b", camera="top")


def test_a_recipe_that_fails_in_an_unexpected_way_is_answered(line, monkeypatch):
    with line() as (daemon, client):

        def broken(_name):
            raise RuntimeError("the runtime fell over")

        monkeypatch.setattr(daemon.room, "product", broken)
        for _ in range(2):  # and the next one is not told that another is being prepared
            with pytest.raises(Refused, match="RuntimeError: the runtime fell over"):
                client.admin("RECIPE", timeout_s=20.0, action="prepare", recipe="b")
