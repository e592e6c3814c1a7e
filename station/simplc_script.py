"""The script of a simulated line: how many parts, how fast, and what goes wrong on purpose."""

import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import ConfigError


class Fault(StrEnum):
    """A mistake of the PLC or of its network, made on purpose; the answer must be a reject."""

    REPEAT = "repeat"  # the same trigger id again: duplicate
    BURST = "burst"  # a second part while the first is in flight: busy or overrun
    VANISH = "vanish"  # the connection dies in mid-part, then the same id again: duplicate
    NOISE = "noise"  # bytes that are no command, and a trigger without an id


class Script(BaseModel):
    """A run. `faults` gives each fault's probability per part; times in milliseconds.

    Jitter is uniform in +-jitter_ms about each part's due time. `deadline_ms` is what the station
    is given for a part; the PLC itself waits `margin_ms` longer and then rejects.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    parts: int = Field(100, ge=1, le=10_000_000)
    takt_ms: float = Field(200.0, ge=0)
    jitter_ms: float = Field(0.0, ge=0)
    deadline_ms: int = Field(1000, ge=1, le=600_000)
    margin_ms: int = Field(500, ge=0)
    first_id: int = Field(1, ge=1, lt=2**32)
    seed: int = 1
    faults: dict[Fault, float] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the run: its number, when it is due (seconds from the start), what goes wrong."""

    number: int
    trigger: int
    due_s: float
    fault: Fault | None


def plan(script: Script) -> Iterator[Part]:
    """The parts in order; the same script gives the same parts."""
    dice = random.Random(script.seed)
    for number in range(script.parts):
        jitter = dice.uniform(-1, 1) * script.jitter_ms
        due = max(0.0, number * script.takt_ms + jitter) / 1000
        yield Part(number, (script.first_id + number) % 2**32 or 1, due, _fault(script, dice))


def _fault(script: Script, dice: random.Random) -> Fault | None:
    throw = dice.random()
    for fault, rate in script.faults.items():
        if throw < rate:
            return fault
        throw -= rate
    return None


def load_script(path: Path | None, **overrides: object) -> Script:
    """A script of a TOML file with the command line's values over it; ConfigError if wrong."""
    data: dict[str, object] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"the line's script {path} cannot be read: {error}") from None
    data |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return Script.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the line's script: {key}: {first['msg']}") from None


def parse_faults(text: str | None) -> dict[str, float] | None:
    """`repeat=0.01,burst=0.02` of the command line; ConfigError if it is not that."""
    if text is None:
        return None
    try:
        pairs = [item.split("=") for item in text.split(",") if item]
        return {name.strip(): float(rate) for name, rate in pairs}
    except ValueError:
        raise ConfigError(
            f"--faults {text!r}: write name=probability, separated by commas"
        ) from None
