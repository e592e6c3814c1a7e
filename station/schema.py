"""ISP/1 message bodies: what is stored, published, replayed and recorded, as pydantic models.

Every body is the UTF-8 JSON of one model made by `body()`, at most 16 KiB, and stays those very
bytes in the ledger row, on the bus, in a FETCH answer and in a recording. Readers ignore fields
they do not know; numbers are finite; times are integers of microseconds; ids of 64 bits are
16 lower-case hex digits, because JavaScript rounds integers above 2^53 (docs/integrator.md).
"""

import secrets
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROTO: Literal["isp/1"] = "isp/1"
MAX_BODY = 16 * 1024
MAX_REGIONS = 64

Id64 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
PartId = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
ImageRef = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:-]{1,160}$")]
Micros = Annotated[int, Field(ge=0, le=2**53 - 1)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Seq = Annotated[int, Field(ge=1, le=2**53 - 1)]


def new_id() -> str:
    """A random 64-bit id as 16 hex digits (epochs, sessions, trigger ids)."""
    return secrets.token_hex(8)


def hex64(number: int) -> str:
    """A non-negative integer below 2^64 as an id of 16 hex digits; ValueError outside."""
    if not 0 <= number < 2**64:
        raise ValueError(f"an id must be in 0..2^64-1, not {number}")
    return f"{number:016x}"


class Verdict(StrEnum):
    """What a part is. OK is the only positive statement; anything else rejects."""

    OK = "OK"
    NG = "NG"
    UNDECIDED = "UNDECIDED"
    ERROR = "ERROR"


class Reason(StrEnum):
    """Why a verdict is what it is. OK and NG are decided by the score alone."""

    SCORE = "score"
    DEADLINE = "deadline"
    QUEUE_FULL = "queue_full"
    RECIPE = "recipe"
    IMPLAUSIBLE_FRAME = "implausible_frame"
    CAMERA = "camera"
    STALE_FRAME = "stale_frame"
    INFER = "infer"
    NOT_FINITE = "not_finite"
    RESTART = "restart"
    CONFIG = "config"


REASONS: dict[Verdict, frozenset[Reason]] = {
    Verdict.OK: frozenset({Reason.SCORE}),
    Verdict.NG: frozenset({Reason.SCORE}),
    Verdict.UNDECIDED: frozenset(
        {Reason.DEADLINE, Reason.QUEUE_FULL, Reason.RECIPE, Reason.IMPLAUSIBLE_FRAME}
    ),
    Verdict.ERROR: frozenset(
        {
            Reason.CAMERA,
            Reason.STALE_FRAME,
            Reason.INFER,
            Reason.NOT_FINITE,
            Reason.RESTART,
            Reason.CONFIG,
        }
    ),
}


class Stream(StrEnum):
    """The five streams of a station. Only result, desc and event are stored and FETCHable."""

    RESULT = "result"
    DESC = "desc"
    EVENT = "event"
    STATUS = "status"
    THUMB = "thumb"


STORED = (Stream.RESULT, Stream.DESC, Stream.EVENT)


class DescState(StrEnum):
    """The description's state at verdict time; it may still never come."""

    NONE = "none"
    QUEUED = "queued"
    DROPPED = "dropped"


class Model(BaseModel):
    """Base of all bodies: frozen, finite numbers only, unknown fields ignored by readers."""

    model_config = ConfigDict(
        frozen=True,
        allow_inf_nan=False,
        extra="ignore",
        from_attributes=True,
        ser_json_bytes="utf8",
    )


class Strict(Model):
    """Base of what the station itself is told (commands, drafts): unknown fields forbidden."""

    model_config = ConfigDict(
        frozen=True, allow_inf_nan=False, extra="forbid", from_attributes=True
    )


class Region(Model):
    """One anomalous region: a box in original pixels with its peak score and area in pixels."""

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    w: int = Field(ge=1)
    h: int = Field(ge=1)
    peak: float
    area: int = Field(ge=0)


class Timings(Model):
    """Durations in microseconds. `commit` ends when the row is written: its own fsync comes after
    the bytes are fixed and can only be measured outside (benchmarks/bus.py)."""

    queue: Micros = 0
    acquire: Micros = 0
    infer: Micros = 0
    commit: Micros = 0


class Opening(Strict):
    """What is known when a trigger is accepted; committed as PENDING before any work.

    `received_ns` is this process's monotonic clock at receipt and `deadline_ms` counts from it.
    `part_id` None means the trigger id; a part id seen before makes a new `attempt`.
    """

    trigger_id: Id64
    part_id: PartId | None = None
    session: Id64 | None = None
    received_ns: int
    deadline_ms: int = Field(ge=1, le=600_000)
    t_trigger_us: Micros
    simulated: bool = False
    threshold: float | None = None
    recipe: str = Field(default="", max_length=128)
    recipe_sha: Sha256 = ""
    bundle_sha: Sha256 = ""
    config_sha: Sha256 = ""

    @property
    def deadline_ns(self) -> int:
        """The deadline on the monotonic clock of this process."""
        return self.received_ns + self.deadline_ms * 1_000_000


class ResultDraft(Strict):
    """A verdict on its way into the ledger, which adds ids, epoch, seq, times and lateness."""

    trigger_id: Id64
    verdict: Verdict
    reason: Reason
    score: float | None = None
    threshold: float | None = None
    regions: tuple[Region, ...] = Field(default=(), max_length=MAX_REGIONS)
    region_count: Count = 0
    t_capture_us: Micros | None = None
    timings_us: Timings = Timings()
    image_ref: ImageRef | None = None
    desc_state: DescState = DescState.NONE

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_verdict(self.verdict, self.reason, self.score, self.threshold)
        return self


def check_verdict(
    verdict: Verdict, reason: Reason, score: float | None, threshold: float | None
) -> None:
    """Refuse (ValueError) a verdict that contradicts its own reason or figures."""
    if reason not in REASONS[verdict]:
        raise ValueError(f"verdict {verdict} cannot have reason {reason}")
    if verdict is Verdict.OK and (score is None or threshold is None or not score <= threshold):
        raise ValueError("OK needs a score at or below a threshold")


class Body(Model):
    """The fields every stored or published body begins with."""

    proto: Literal["isp/1"] = PROTO
    line: Name
    station: Name
    stream: Stream
    epoch: Id64
    seq: Seq


class Result(Body):
    """The verdict on one part. `late` = its commit ended after the deadline: never act on it."""

    stream: Literal[Stream.RESULT] = Stream.RESULT
    trigger_id: Id64
    part_id: PartId
    attempt: int = Field(ge=1)
    verdict: Verdict
    reason: Reason
    late: bool
    simulated: bool
    score: float | None
    threshold: float | None
    regions: tuple[Region, ...] = Field(max_length=MAX_REGIONS)
    region_count: Count
    recipe: str = Field(max_length=128)
    recipe_sha: Sha256
    bundle_sha: Sha256
    config_sha: Sha256
    t_trigger_us: Micros
    t_capture_us: Micros | None
    t_done_us: Micros
    timings_us: Timings
    image_ref: ImageRef | None
    desc_state: DescState

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_verdict(self.verdict, self.reason, self.score, self.threshold)
        return self

    @property
    def accept(self) -> bool:
        """True only for an OK in time: the one condition on which a part may pass."""
        return self.verdict is Verdict.OK and not self.late


class DescDraft(Strict):
    """A description on its way into the ledger (the fields of engines.describer.Description)."""

    trigger_id: Id64
    part_id: PartId
    attempt: int = Field(default=1, ge=1)
    sentence: str = Field(max_length=2000)
    source: Literal["llm", "template"]
    model: str = Field(default="", max_length=200)
    defective: bool | None = None
    category: str | None = Field(default=None, max_length=200)
    count: Count | None = None
    location: str | None = Field(default=None, max_length=200)
    shape: str | None = Field(default=None, max_length=200)
    size_mm_or_px: str | None = Field(default=None, max_length=200)
    colour: str | None = Field(default=None, max_length=200)
    confidence: Literal["low", "medium", "high"] | None = None
    contradiction: str | None = Field(default=None, max_length=500)
    note: str | None = Field(default=None, max_length=500)
    tokens: Count | None = None
    tokens_per_s: float | None = None
    ms: float | None = None


class Desc(DescDraft, Body):
    """The words about one part; they refer to its trigger and never change its verdict."""

    model_config = ConfigDict(extra="ignore")
    stream: Literal[Stream.DESC] = Stream.DESC
    t_us: Micros


class Severity(StrEnum):
    """How much an event matters to the people at the line."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Scalar = str | int | float | bool | None


class EventDraft(Strict):
    """Something that happened: late_answer, restart, ledger_fault, camera_lost, recipe ..."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    severity: Severity = Severity.INFO
    text: str = Field(default="", max_length=2000)
    trigger_id: Id64 | None = None
    data: dict[str, Scalar] = Field(default_factory=dict, max_length=32)


class Event(EventDraft, Body):
    """An event as stored and published."""

    model_config = ConfigDict(extra="ignore")
    stream: Literal[Stream.EVENT] = Stream.EVENT
    t_us: Micros


class StatusFacts(Strict):
    """What the daemon knows for the status; the bus adds epoch, seqs, cursors and its own health.

    `hb` moves only if capture, inference and ledger all ticked since the last status.
    """

    ready: bool
    busy: bool
    mode: str = Field(max_length=32)
    faults: tuple[str, ...] = Field(default=(), max_length=32)
    hb: Count
    open_triggers: Count = 0
    queue_depth: Count = 0
    fps: float = 0.0
    disk_free: Count = 0
    recipe: str = Field(default="", max_length=128)
    describer: str = Field(default="", max_length=200)
    version: str = Field(default="", max_length=32)
    simulated: bool = False


class Status(StatusFacts, Body):
    """The station's state, five times a second. `seq` counts in memory and restarts with it."""

    model_config = ConfigDict(extra="ignore")
    stream: Literal[Stream.STATUS] = Stream.STATUS
    t_us: Micros
    last_seq: dict[str, Count]
    cursors: dict[str, dict[str, Count]] = Field(default_factory=dict)


class Thumb(Body):
    """A small preview picture for screens; `jpeg` is base64. Counted in memory, never stored."""

    stream: Literal[Stream.THUMB] = Stream.THUMB
    trigger_id: Id64 | None = None
    w: int = Field(ge=1)
    h: int = Field(ge=1)
    jpeg: str = Field(max_length=15_000)


STREAM_MODELS: dict[Stream, type[Body]] = {
    Stream.RESULT: Result,
    Stream.DESC: Desc,
    Stream.EVENT: Event,
    Stream.STATUS: Status,
    Stream.THUMB: Thumb,
}


def body(model: BaseModel) -> bytes:
    """The one serialisation: compact UTF-8 JSON in field order. ValueError above 16 KiB."""
    data = model.model_dump_json().encode()
    if len(data) > MAX_BODY:
        raise ValueError(f"a body of {len(data)} bytes is above the limit of {MAX_BODY}")
    return data


def parse(data: bytes) -> Body:
    """A body from its bytes; ValueError (pydantic's ValidationError) if it is not ISP/1."""
    if len(data) > MAX_BODY:
        raise ValueError(f"a body of {len(data)} bytes is above the limit of {MAX_BODY}")
    kind = _Kind.model_validate_json(data)
    return STREAM_MODELS[kind.stream].model_validate_json(data)


class _Kind(Model):
    proto: Literal["isp/1"]
    stream: Stream


def topic(line: str, station: str, stream: Stream | str = "") -> bytes:
    """The PUB topic. Ends in "/" so that a subscription to "st1" never matches "st10"."""
    tail = f"{stream}/" if stream else ""
    return f"isp1/{line}/{station}/{tail}".encode()
