"""`station enroll` and `station confirm`: good parts in, a recipe out."""

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from engines.errors import RecipeError, SourceError, UsageError
from station.logs import set_up
from station.settings import Settings, SourceSettings
from station.sources.base import EndOfSource, Source, open_source
from station.sources.decode import decoded

MIN_REGION = 16
_CAMERA_WAIT_S = 10.0
_CAMERA_GAP_S = 0.25  # frames right after one another hardly differ: they would teach nothing
Named = tuple[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Wanted:
    """The command line of `station enroll`."""

    name: str
    count: int
    shots: int | None
    alpha: float
    defects: Path | None
    noun: str
    phrases: tuple[str, ...]
    region: str | None
    tiles: str
    overlap: float
    mode: str
    deadline_ms: int
    mm_per_px: float | None


def enroll(settings: Settings, wanted: Wanted) -> None:
    """Make the recipe and tell what it promises."""
    from calibration.enroll import enroll as enroll_recipe
    from station.boot import EngineRoom

    set_up(settings.log)
    args = _args(wanted, settings)
    source = open_source(settings.source.spec, once(settings.source))
    source.open()
    room = EngineRoom(settings)
    try:
        report = enroll_recipe(
            frames(source, wanted.count if source.live else None),
            args,
            room.detector,
            settings.recipe.root,
            shots=wanted.shots,
            alpha=wanted.alpha,
            defects=_defects(wanted.defects),
            progress=_progress(),
        )
    finally:
        source.close()
    _tell(report, wanted.name)


def once(source: SourceSettings) -> SourceSettings:
    """The line's source settings for a folder that is read once: no loop, no watch, no pace.

    Otherwise the `loop` of a rehearsal in station.toml would let an enrolment never end. A camera
    keeps its `fps`: there it is asked of the device.
    """
    files = Path(source.spec).exists() and not source.spec.startswith("/dev/")
    return source.model_copy(
        update={"loop": False, "watch": False} | ({"fps": 0.0} if files else {})
    )


def confirm(settings: Settings, name: str, normals: Path, *, sure: bool = False) -> None:
    """Add confirmed parts to the held-out set; tells how the threshold moved."""
    from calibration.enroll import confirm as confirm_parts
    from calibration.recipe import load_recipe
    from station.boot import EngineRoom

    set_up(settings.log)
    loaded = load_recipe(settings.recipe.root, name)
    source = open_source(str(normals))
    source.open()
    room = EngineRoom(settings)
    done = confirm_parts(loaded.path, frames(source, None), room.detector, _progress(), sure=sure)
    typer.echo(
        f"recipe {name}: {done.calibration.n} held-out good parts; "
        + ("still learning" if done.recipe.learning else done.calibration.guarantee)
    )
    typer.echo(f"  threshold {loaded.threshold:.6g} before, {done.threshold:.6g} now")


def frames(source: Source, count: int | None) -> Iterator[Named]:
    """(name, BGR) of every whole picture; of a camera `count` frames, some time apart."""
    taken, last = 0, 0.0
    end = time.monotonic() + _CAMERA_WAIT_S
    while count is None or taken < count:
        try:
            frame = source.read(0.2)
        except EndOfSource:
            return
        now = time.monotonic()
        if frame is None:
            if source.live and now > end:
                raise SourceError(f"the camera gave {taken} of {count} frames, then none for 10 s")
            continue
        end = now + _CAMERA_WAIT_S
        if source.live and (now - last < _CAMERA_GAP_S or frame.repeat):
            continue
        frame = decoded(frame)
        if frame.fault is not None or frame.image is None:
            print(f"left out: {frame.fault}", file=sys.stderr)
            continue
        taken, last = taken + 1, now
        yield frame.name, frame.image


def _args(wanted: Wanted, settings: Settings) -> Any:
    from pydantic import ValidationError

    from calibration.enroll import DEFAULT_MODE, RecipeArgs
    from calibration.recipe import Recipe

    if not 0 < wanted.alpha < 1:
        raise UsageError(f"--alpha {wanted.alpha:g}: say a share between 0 and 1, such as 0.05")
    values: dict[str, Any] = {
        "name": wanted.name,
        "noun": wanted.noun,
        "phrases": wanted.phrases,
        "region": _region(wanted.region),
        "tiles": _tiles(wanted.tiles),
        "overlap": wanted.overlap,
        "deadline_ms": wanted.deadline_ms,
        "mm_per_px": wanted.mm_per_px,
        "camera": dict(settings.source.controls),
    }
    try:
        args = RecipeArgs(**values, mode=wanted.mode)  # type: ignore[arg-type]
        Recipe(**values, mode=DEFAULT_MODE)  # its bounds: before the first picture is read
    except ValidationError as error:
        raise UsageError(_wrong_option(error.errors()[0])) from None
    return args


def _wrong_option(first: Any) -> str:
    """pydantic's first complaint in the words of the command line."""
    field = str(first["loc"][0])
    option = {"name": "recipe", "phrases": "phrase"}.get(field, field).replace("_", "-")
    given, said = first["input"], first["msg"].removeprefix("Value error, ")
    if isinstance(given, tuple):
        given = (", " if field == "phrases" else "x").join(map(str, given))
    return f"--{option} {given!r}: {said}"


def _region(text: str | None) -> Any:
    from engines.preprocess import Box

    if text is None:
        return None
    found = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)", text.replace(" ", ""))
    if found is None:
        raise UsageError(f"--region {text!r}: write x,y,w,h in pixels of the frame")
    box = Box(*(int(v) for v in found.groups()))
    if min(box.w, box.h) < MIN_REGION:
        raise UsageError(
            f"--region {text!r}: w and h are at least {MIN_REGION} pixels: nothing is seen in less"
        )
    return box


def _tiles(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if found is None:
        raise UsageError(f"--tiles {text!r}: write ROWSxCOLS, for example 2x3")
    return int(found[1]), int(found[2])


def _defects(path: Path | None) -> Iterator[Named]:
    if path is None:
        return iter(())
    source = open_source(str(path))
    source.open()
    return frames(source, None)


def _progress() -> Any:
    """Progress to stderr: a moving line on a terminal, one line per stage elsewhere."""
    seen: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            of = f"/{total}" if total else ""
            print(f"\r\033[K{stage} {done}{of}", end="", file=sys.stderr, flush=True)
            if total and done >= total:
                print(file=sys.stderr)
        elif stage not in seen:
            seen.add(stage)
            print(stage, file=sys.stderr, flush=True)

    return tell


def _tell(report: Any, name: str) -> None:
    """What was made, what it promises, what to do next."""
    if sys.stderr.isatty():
        print(file=sys.stderr)
    typer.echo(f"recipe {name}: {report.path}")
    typer.echo(f"  mode {report.mode} ({report.chosen_by})")
    typer.echo(f"  {len(report.shots)} references, {report.held_out} held-out good parts")
    typer.echo(f"  {report.trust}")
    if report.duplicates:
        typer.echo(f"  {len(report.duplicates)} duplicates left out")
    typer.echo(f"  threshold {report.threshold:.6g}; {report.guarantee}")
    typer.echo(f"  scores drawn in {report.histogram}")
    if report.odd:
        typer.echo(
            f"  LOOK at {', '.join(report.odd[:5])}: far above the other good parts. A defect? It "
            "raises the threshold to its own score: take it out and enrol again. Good: all is well",
            err=True,
        )
    if report.learning:
        typer.echo(
            "  learning: NG and UNDECIDED, never OK, until enough good parts are confirmed:\n"
            f"  station confirm --recipe {name} --normals FOLDER"
        )
    if report.held_out == 0 and not report.learning:
        raise RecipeError(f"recipe {name}: no held-out part")
    typer.echo(f"next: station run --recipe {name} --source ...")
