"""`station replay`: the same daemon over recorded frames, in a ledger and on ports of its own.

What was recorded is compared where the recording holds verdicts: `--verify` must find none that
differ, another recipe or threshold shows what would have changed.
"""

import socket
import tempfile
from pathlib import Path
from typing import Any

from engines.errors import UsageError, VerifyMismatch
from station.cli_run import run
from station.options import Options
from station.record_reader import McapSource
from station.settings import Settings
from station.sources.choose import is_recording
from station.verify import Verifier


def replay(
    settings: Settings,
    path: Path,
    *,
    verify: bool = False,
    threshold: float | None = None,
    recipe: str | None = None,
    words: bool = False,
    speed: float = 0.0,
) -> int:
    """Judge a recording, folder or video again; no deadline strikes, nothing is kept.

    Each part is judged with the recipe it was recorded with, unless `recipe` (which the settings
    name too) asks what another would say. `threshold` replaces the recipe's. `speed` 1 keeps a
    recording's pauses, 2 halves them, 0 waits for nothing. Exit 7 with a table when `verify` finds
    other verdicts or scores than were recorded; without it the table answers "what would have
    happened" and the exit code is 0. Raises UsageError: nothing recorded to verify against, or
    `speed` of what is no recording; RecipeError: a recorded recipe is not there any more.
    """
    if speed and not _recorded(path):
        raise UsageError(f"{path}: --speed needs a recording (.mcap); pace a folder by source.fps")
    verifier = Verifier(what_if=threshold is not None or not verify)
    options = Options(simulated=True, threshold=threshold, listeners=[verifier.part])
    if _recorded(path):
        options.source = lambda _settings: McapSource(path, speed)
        if recipe is None:
            settings = _with_recipe(settings, path)
            options.recipe_of = lambda frame: frame.tags.get("recipe")
    with tempfile.TemporaryDirectory(prefix="station-replay-") as folder:
        code = run(_apart(settings, path, Path(folder), words=words), None, options)
    if verify and verifier.compared == 0:
        raise UsageError(f"{path}: holds no recorded verdicts to verify against")
    if verifier.compared and (verify or threshold is not None or verifier.differing):
        verifier.tell(verify=verify)
    if verify and verifier.differing:
        raise VerifyMismatch(
            f"{path}: {verifier.differing} of {verifier.compared} parts differ from the recording"
        )
    return code


def _recorded(path: Path) -> bool:
    return is_recording(path) or (path.is_dir() and any(path.glob("*.mcap")))


def _with_recipe(settings: Settings, path: Path) -> Settings:
    """To begin with, the first part's recipe; the configured one for a recording without."""
    source = McapSource(path)
    source.open()
    name = settings.recipe.name if source.recipe is None else source.recipe or None
    source.close()
    return settings.model_copy(update={"recipe": settings.recipe.model_copy(update={"name": name})})


def _apart(settings: Settings, path: Path, folder: Path, *, words: bool) -> Settings:
    """The settings, changed so that a live station beside it notices nothing."""
    source = {"spec": str(path), "recipe": None, "loop": False, "watch": False, "fps": 0.0}
    off = {"enabled": False}
    changes: dict[str, dict[str, Any]] = {
        "ledger": {"path": folder / "ledger.db"},
        "bus": _ports(settings),
        "source": source,
        "record": off,
        "archive": off,
        "drift": off,
        "golden": {"every_s": 0.0},
        "describe": {"enabled": words},
        "metrics": {"port": 0},
        "trigger": {"mode": "auto", "by": "auto"},
    }
    update: dict[str, Any] = {
        name: getattr(settings, name).model_copy(update=values) for name, values in changes.items()
    }
    return settings.model_copy(update=update | {"cameras": {}})


def _ports(settings: Settings) -> dict[str, Any]:
    """Free ports, so that a live station keeps its own; the configured ones if they are not the
    usual ones and nobody uses them (for a page that watches the replay)."""
    bus, usual = settings.bus, type(settings.bus)()
    chosen = (bus.pub_port, bus.ctl_port)
    watched = chosen != (usual.pub_port, usual.ctl_port) and all(map(_unused, chosen))
    return {} if watched else {"pub_port": 0, "ctl_port": 0}


def _unused(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
