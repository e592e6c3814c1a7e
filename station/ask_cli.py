"""`station ask PART_ID ["question"]`: further questions about a part that was inspected.

The picture comes from the archive, the engine looks at it again, and the describer answers with
the same prefix and findings as in its description (the paper's multi-turn ability). Without a
question it is a dialogue, one line each, until an empty line.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from engines.describer import DescribeRequest, DescriberSettings, Description
from engines.errors import EngineError, SourceError, UsageError
from engines.gguf_describer import LlmDescriber
from station.archive import CLASSES
from station.archive_index import Entry, entries
from station.boot import EngineRoom
from station.describe_request import describe_request
from station.inspection import infer, outcome, prepare
from station.schema import Result
from station.settings import Settings, load_settings
from station.sources.base import Frame


@dataclass(frozen=True)
class Asked:
    """A part found in the archive: its result and its picture's bytes."""

    result: Result
    name: str
    raw: bytes


def app(
    part_id: Annotated[str, typer.Argument(help="The part, as results name it.")],
    question: Annotated[str | None, typer.Argument(help="Left out: a dialogue.")] = None,
    config: Annotated[Path | None, typer.Option(help="station.toml")] = None,
) -> None:
    """Ask the describer about a part in the archive."""
    settings = load_settings(config)
    part = find_part(settings.archive.folder, part_id)
    request = look_again(part, settings)
    describer = LlmDescriber.open(describer_settings(settings))
    try:
        description = describer.describe(request)
        typer.echo(description.sentence)
        talk(describer, request, description, question)
    finally:
        describer.close()


def talk(
    describer: LlmDescriber,
    request: DescribeRequest,
    description: Description,
    question: str | None,
) -> None:
    """Answer one question, or every line until an empty one, each with what was said before."""
    earlier: list[tuple[str, str]] = []
    for asked in [question] if question else _lines():
        try:
            answer = describer.answer(request, description, asked, earlier)
        except EngineError:
            if not earlier:
                raise
            # The dialogue outgrew the context: the oldest turns are forgotten, not the question.
            earlier = earlier[len(earlier) // 2 + 1 :]
            answer = describer.answer(request, description, asked, earlier)
        earlier.append((asked, answer))
        typer.echo(answer or "(no answer)")


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            typer.echo("? ", nl=False)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def find_part(folder: Path, part_id: str) -> Asked:
    """The newest archived picture of a part.

    Raises UsageError when there is none, SourceError when what names the part is no result.
    """
    found: list[tuple[Result, Entry]] = []
    for kind in CLASSES:
        for entry in entries(folder, kind):
            body = entry.read(".json")
            if body is None or part_id.encode() not in body:
                continue
            try:
                result = Result.model_validate_json(body)
            except ValidationError:
                raise SourceError(
                    f"{entry.stem}.json: not a result of the archive; remove it"
                ) from None
            if part_id in {result.part_id, result.trigger_id}:
                found.append((result, entry))
    for result, entry in sorted(found, key=lambda f: f[0].t_trigger_us, reverse=True):
        if entry.picture is not None:
            return Asked(result, entry.picture.name, entry.picture.read_bytes())
    raise UsageError(
        f"the archive {folder} holds no picture of part {part_id!r}; "
        "see [archive] in station.toml for what is kept"
    )


def look_again(part: Asked, settings: Settings) -> DescribeRequest:
    """The describer's request for an archived part: the same engine and recipe, run once more."""
    product = EngineRoom(settings).product(part.result.recipe or None)
    frame = Frame(
        image=None, raw=part.raw, name=part.name, t_capture_ns=0, wall_us=0, index=0, fault=None
    )
    prepared = prepare(frame, product, live=False)
    if prepared.tiles is None:
        reason = prepared.refusal.text if prepared.refusal else "it cannot be inspected"
        raise UsageError(f"part {part.result.part_id!r} has no map to talk about: {reason}")
    judged = outcome(prepared, infer([prepared], product), product)
    return describe_request(part.result, product, prepared, judged)


def describer_settings(settings: Settings) -> DescriberSettings:
    """The station's describer, with a deadline for a person who waits."""
    section = settings.describe
    return DescriberSettings(
        model=section.model,
        prefix=EngineRoom(settings).prefix(),
        threads=section.threads,
        batch=1,
        deadline_s=max(60.0, section.deadline_s),
    )
