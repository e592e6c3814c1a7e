"""`make demo`: the main job on real parts, until a person has seen verdicts, maps and words.

Enrols a recipe from good parts, runs the station over a mixed batch in its own process while
`station tail` prints what the bus says, then compares with the labels and draws the contact sheet.
"""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from calibration.enroll import DetectorLike, open_recipe
from calibration.recipe import LoadedRecipe
from engines.bundle import load_bundle
from engines.detector import Detector
from engines.errors import SourceError, UsageError
from engines.preprocess import stitch, to_tiles
from station.demo_data import DemoSet, Part, folder, link, solar_cells, write_labels
from station.demo_sheet import Card, contact_sheet
from station.ledger import Ledger
from station.schema import Desc, Result, Stream, Verdict

LINE, STATION, RECIPE = "demo", "st1", "demo"
MARK = ".station-demo"
CARDS = 12
console = Console(highlight=False)


@dataclass(frozen=True)
class Seen:
    """One inspected part: what was known, what the station said."""

    file: str
    part: Part
    result: Result
    words: str


def demo(
    out: Annotated[Path, typer.Option(help="Folder for recipe, ledger and contact sheet")] = Path(
        "build/demo"
    ),
    data: Annotated[
        Path | None, typer.Option(help="Folder with index.jsonl, or with good/ and bad/")
    ] = None,
) -> None:
    """Show what the station does, on real photographs."""
    parts = folder(data) if data else solar_cells()
    _run(own_folder(out.resolve()), parts)


def own_folder(out: Path) -> Path:
    """Make `out`, or take it again. UsageError for one with anything in it that no demo made.

    A demo replaces ledger, recipe, links and sheet of the one before: it must be sure whose they
    are.
    """
    if out.is_dir() and not (out / MARK).is_file() and any(out.iterdir()):
        raise UsageError(
            f"{out} holds files that no demo made: name a new or an empty folder with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("A folder of `station demo`: the next one replaces what is in it.\n")
    return out


def _run(out: Path, parts: DemoSet) -> None:
    link(parts.normals, out / "good")
    batch = link(parts.batch, out / "batch")
    write_labels(batch, out / "batch.csv")
    environment = _environment(out)
    _say(f"1/3  {len(parts.normals)} good {parts.title} are shown to the station")
    phrases = [word for phrase in parts.phrases for word in ("--phrase", phrase)]
    _station("enroll", "--recipe", RECIPE, "--normals", str(out / "good"), "--noun", parts.noun,
             *phrases, environment=environment)  # fmt: skip
    _say(f"2/3  {len(batch)} parts go by: good and defective, mixed; a subscriber prints the bus")
    tail = subprocess.Popen([sys.executable, "-m", "station.cli", "tail"], env=environment)
    try:
        _station("run", "--source", str(out / "batch"), "--recipe", RECIPE, environment=environment)
        time.sleep(0.5)  # what is still on its way to the subscriber
    finally:
        tail.terminate()
        tail.wait(5)
    _say("3/3  What the labels say")
    seen = _read(out, batch)
    if not seen:
        raise SourceError(f"{parts.title}: not one of {len(batch)} parts could be inspected")
    _table(seen)
    if parts.remark:
        console.print(f"[dim]{parts.remark}[/dim]")
    sheet = out / "contact_sheet.png"
    _sheet(out, seen, sheet)
    _what_next(out, sheet)


def _environment(out: Path) -> dict[str, str]:
    """Everything of the demo lives in `out`; free ports, so that it disturbs no running station."""
    for old in out.glob("ledger.db*"):
        old.unlink()
    ports = iter(_free_ports(2))
    return os.environ | {
        "STATION_STATION__LINE": LINE,
        "STATION_STATION__NAME": STATION,
        "STATION_LEDGER__PATH": str(out / "ledger.db"),
        "STATION_RECIPE__ROOT": str(out / "recipes"),
        "STATION_ARCHIVE__FOLDER": str(out / "archive"),
        "STATION_BUS__PUB_PORT": str(next(ports)),
        "STATION_BUS__CTL_PORT": str(next(ports)),
        "STATION_METRICS__PORT": "0",
        "STATION_DESCRIBE__QUEUE": "256",
        "STATION_LOG__LEVEL": "warning",
    }


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in held]
    for server in held:
        server.close()
    return ports


def _station(*arguments: str, environment: dict[str, str]) -> None:
    console.print(f"[dim]$ station {' '.join(arguments)}[/dim]")
    command = [sys.executable, "-m", "station.cli", *arguments]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # the command has said its sentence


def _read(out: Path, batch: dict[str, Part]) -> list[Seen]:
    """Verdicts and descriptions out of the ledger, the one accountable place."""
    ledger = Ledger(out / "ledger.db", line=LINE, station=STATION)
    try:
        results = [Result.model_validate_json(body) for body in _all(ledger, Stream.RESULT)]
        descs = [Desc.model_validate_json(body) for body in _all(ledger, Stream.DESC)]
    finally:
        ledger.close()
    words = {desc.trigger_id: desc.sentence for desc in descs}
    files = {Path(name).stem: name for name in batch}
    return [
        Seen(files[r.part_id], batch[files[r.part_id]], r, words.get(r.trigger_id, ""))
        for r in results
    ]


def _all(ledger: Ledger, stream: Stream) -> list[bytes]:
    bodies: list[bytes] = []
    while True:
        page = ledger.fetch(stream, ledger.epoch, len(bodies) + 1, 100).result(10)
        bodies.extend(page.bodies)
        if page.end:
            return bodies


def _table(seen: list[Seen]) -> None:
    table = Table("label", "parts", "OK", "NG", "undecided", "error", "wrong")
    for label, good in (("good", True), ("defective", False)):
        group = [s for s in seen if s.part.good is good]
        counts = [sum(s.result.verdict is v for s in group) for v in Verdict]
        wrong = sum((s.result.verdict is Verdict.OK) is not good for s in group)
        name = "false rejects" if good else "false accepts"
        table.add_row(label, str(len(group)), *map(str, counts), f"{wrong} {name}")
    console.print(table)
    micros = [s.result.t_done_us - s.result.t_trigger_us for s in seen]
    p50, p99 = np.percentile(micros, [50, 99]) / 1000.0
    console.print(
        f"latency from trigger to durable verdict: p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
        f"{sum(bool(s.words) for s in seen)} descriptions"
    )


def _sheet(out: Path, seen: list[Seen], path: Path) -> None:
    """The worst parts by score with their maps; what is no picture has neither."""
    bundle = load_bundle("nano")
    recipe, detector, _ = open_recipe(
        out / "recipes", RECIPE, lambda mode: Detector.open(bundle, mode)
    )
    ranked = sorted(seen, key=lambda s: -(s.result.score or 0.0))
    with_score = [s for s in ranked if s.result.score is not None]
    cards = [_card(s, recipe, detector) for s in with_score[:CARDS]]
    contact_sheet(cards, path, f"The {len(cards)} highest scores, with their heat maps")


def _card(seen: Seen, loaded: LoadedRecipe, detector: DetectorLike) -> Card:
    raw = np.frombuffer(seen.part.path.read_bytes(), np.uint8)  # imread knows UTF-8 names only
    frame = np.asarray(cv2.imdecode(raw, cv2.IMREAD_COLOR), dtype=np.uint8)
    recipe = loaded.recipe
    boxes = recipe.boxes(frame.shape[:2])
    answer = detector.run(to_tiles(frame, boxes), recipe.groups(len(boxes)))
    heat = stitch(answer.map, boxes, frame.shape[:2], recipe.region)
    title = (
        f"labelled {seen.part.label}   score {seen.result.score:.3f}, limit {loaded.threshold:.3f}"
    )
    level = min(max(loaded.threshold, 1e-6), 0.5)  # the map is a probability: full colour at 1
    passed = seen.result.verdict is Verdict.OK
    right = passed is seen.part.good
    judgement = "right" if right else "WRONG: a defect passed" if passed else "WRONG: a good part"
    return Card(frame, heat, level, seen.result.verdict.value, title, seen.words, right, judgement)


def _say(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def _what_next(out: Path, sheet: Path) -> None:
    console.print(f"\n[bold]Look at the contact sheet: {sheet}[/bold]")
    console.print(
        f"Scores of the good parts, threshold: {out / 'recipes' / RECIPE / 'histogram.png'}\n"
        "Next: station enroll --recipe NAME --camera 0 --count 40   (your own part)\n"
        "      station run --camera 0 --recipe NAME\n"
        "      station ui                                           (the operator's page)\n"
        "      station doctor                                       (what this machine can do)"
    )


if __name__ == "__main__":
    from station.cli import main

    main(["demo", *sys.argv[1:]])
