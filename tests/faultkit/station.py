"""A whole station in this process, on free ports and in a folder of its own, with a fake engine."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2

from faultkit.camera import picture
from faultkit.engines import FakeEngine, FakeRoom
from station.client import Client, Refused
from station.daemon import Daemon
from station.logs import set_up
from station.options import Options
from station.schema import Reason, Result, Verdict, new_id
from station.settings import Settings, load_settings

GOOD = (Verdict.OK, Reason.SCORE)


def parts_folder(folder: Path, count: int, **style: Any) -> Path:
    """`count` different pictures p000.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"p{number:03d}.png"), picture(number, **style))
    return folder


def settings_in(folder: Path, spec: str, **sections: Any) -> Settings:
    """Settings of a test station: everything under `folder`, free ports, no words, no archive."""
    base: dict[str, Any] = {
        "ledger": {"path": folder / "ledger.db"},
        "bus": {"pub_port": 0, "ctl_port": 0},
        "source": {"spec": spec},
        "recipe": {"name": "test", "root": folder / "recipes"},
        "describe": {"enabled": False},
        "archive": {"enabled": False, "folder": folder / "archive"},
        "drift": {"enabled": False},
        "log": {"level": "error", "format": "json"},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    empty = folder / "empty.toml"
    empty.write_text("")
    return load_settings(empty, base)


@contextlib.contextmanager
def station(
    folder: Path, spec: str, engine: FakeEngine | None = None, **sections: Any
) -> Iterator[tuple[Daemon, Client]]:
    """A running daemon and a client that has said HELLO.

    `recipe_kw` goes to the fake recipe, `engine_kw` is the section [engine].
    """
    recipe = sections.pop("recipe_kw", {})
    sections["engine"] = sections.pop("engine_kw", {})
    given = {"engine": FakeRoom(engine, **recipe)} | sections.pop("options", {})
    options = Options(**given)
    settings = settings_in(folder, spec, **sections)
    set_up(settings.log)
    daemon = Daemon(settings, options)
    daemon.start()
    try:
        with Client(daemon.bus.ctl_address, daemon.bus.pub_address, name="test") as client:
            client.hello()
            yield daemon, client
    finally:
        daemon.close()


def results(client: Client) -> list[Result]:
    """Every result in the ledger, by FETCH."""
    return [Result.model_validate_json(body) for body in client.fetch_all("result")]


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> float:
    """Wait until it holds; how long that took. AssertionError when it does not."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "timed out"
        time.sleep(0.002)
    return time.monotonic() - start


def crowded() -> bool:
    """Whether other work keeps this machine's cores busy: then milliseconds prove nothing."""
    return os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


def show(client: Client) -> object:
    """What one triggered part becomes."""
    try:
        result = client.trigger(new_id(), deadline_ms=4000, timeout_s=30)
    except Refused as refused:
        return str(refused.reply.reply)
    return result.verdict, result.reason
