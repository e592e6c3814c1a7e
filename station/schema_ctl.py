"""ISP/1 commands and replies of the accountable socket (ROUTER): what may be asked and answered.

A request is one frame of JSON: `{"cmd": "PING", "rid": "7", "session": "..."}`; REQ's and DEALER's
empty delimiter is accepted. An answer starts with a frame of JSON (`Reply`), and pages, bodies and
pictures follow as frames of their own. The RESULT of a TRIGGER is one frame: the stored body
itself, byte for byte.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import from_json

from station.schema import (
    PROTO,
    STREAM_MODELS,
    Count,
    Id64,
    ImageRef,
    Micros,
    Model,
    Name,
    PartId,
    Seq,
    Stream,
    Strict,
)

MAX_COMMAND = 64 * 1024
MAX_PAGE = 256
MAX_PEEK = 4 * 1024  # no lawful command is larger; of what is, the rid is not looked for
Rid = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
StoredStream = Literal[Stream.RESULT, Stream.DESC, Stream.EVENT]


class Command(Strict):
    """Every command carries a request id and, after HELLO, the session it belongs to."""

    model_config = ConfigDict(strict=True)
    proto: Literal["isp/1"] = PROTO
    rid: Rid
    session: Id64 | None = None


class Hello(Command):
    """Open a session. `client` names the consumer whose cursors ACK moves."""

    cmd: Literal["HELLO"] = "HELLO"
    client: Name


class Trigger(Command):
    """Inspect a part. `wait`: one answer only, the RESULT or the refusal (for REQ clients)."""

    cmd: Literal["TRIGGER"] = "TRIGGER"
    trigger_id: Id64
    part_id: PartId | None = None
    deadline_ms: int | None = Field(default=None, ge=1, le=600_000)
    wait: bool = False


class Fetch(Command):
    """Stored bodies from `from_seq` on, at most `max` of them."""

    cmd: Literal["FETCH"] = "FETCH"
    stream: StoredStream
    epoch: Id64
    from_seq: Seq
    max: int = Field(default=100, ge=1, le=MAX_PAGE)


class Ack(Command):
    """All bodies of the stream up to this seq are safe with the consumer."""

    cmd: Literal["ACK"] = "ACK"
    stream: StoredStream
    upto_seq: Seq


class Latest(Command):
    """The newest stored body. For observers; a gateway pairs by trigger id, always."""

    cmd: Literal["LATEST"] = "LATEST"
    stream: StoredStream


class Get(Command):
    """The picture a body refers to: answered [header][PNG or JPEG]."""

    cmd: Literal["GET"] = "GET"
    image_ref: ImageRef


class StatusQuery(Command):
    """The status as it would be published now."""

    cmd: Literal["STATUS"] = "STATUS"


class Ping(Command):
    """Are you there? Keeps a session alive."""

    cmd: Literal["PING"] = "PING"


class RecipeCommand(Command):
    """Changeover: prepare (load, warm, self-test), commit at a part boundary, or roll back.

    `camera` names one of several that judge by different recipes; it goes with prepare.
    """

    cmd: Literal["RECIPE"] = "RECIPE"
    action: Literal["prepare", "commit", "rollback"]
    recipe: Name | None = None
    camera: Name | None = None
    force: bool = False


class ModeCommand(Command):
    """Change between triggered and free-run."""

    cmd: Literal["MODE"] = "MODE"
    mode: Literal["triggered", "free_run", "stopped"]


class Reset(Command):
    """A person has looked: look at every reason against READY again, now."""

    cmd: Literal["RESET"] = "RESET"


AnyCommand = Annotated[
    Hello
    | Trigger
    | Fetch
    | Ack
    | Latest
    | Get
    | StatusQuery
    | Ping
    | RecipeCommand
    | ModeCommand
    | Reset,
    Field(discriminator="cmd"),
]
AdminCommand = RecipeCommand | ModeCommand | Reset
_COMMANDS: TypeAdapter[AnyCommand] = TypeAdapter(AnyCommand)
_RID: TypeAdapter[str] = TypeAdapter(Rid)


def parse_command(data: bytes) -> AnyCommand:
    """A command from its bytes; ValueError (pydantic's ValidationError) when it is none."""
    if len(data) > MAX_COMMAND:
        raise ValueError(f"a command of {len(data)} bytes is above the limit of {MAX_COMMAND}")
    return _COMMANDS.validate_json(data)


def rid_of(data: bytes) -> str:
    """The request id of what is no command, "" if it has no lawful one: a refusal without it
    would leave its sender waiting until the part's deadline."""
    if len(data) > MAX_PEEK:
        return ""
    try:
        return _RID.validate_python(from_json(data)["rid"])
    except (ValueError, TypeError, KeyError):
        return ""


class Kind(StrEnum):
    """What an answer is."""

    HELLO = "hello"
    ACCEPTED = "accepted"
    BUSY = "busy"
    NOT_READY = "not_ready"
    DUPLICATE = "duplicate"
    PAGE = "page"
    GONE = "gone"
    ACKED = "acked"
    LATEST = "latest"
    IMAGE = "image"
    STATUS = "status"
    PONG = "pong"
    DONE = "done"
    HELLO_FIRST = "hello_first"
    DENIED = "denied"
    LIMITED = "limited"
    NOT_FOUND = "not_found"
    ERROR = "error"


class Reply(Model):
    """The first frame of every answer but a RESULT. Fields that do not apply are left out."""

    proto: Literal["isp/1"] = PROTO
    line: Name
    station: Name
    reply: Kind
    rid: str = ""
    text: str | None = None
    t_us: Micros | None = None
    # hello
    session: Id64 | None = None
    role: str | None = None
    epoch: Id64 | None = None
    last_seq: dict[str, Count] | None = None
    cursors: dict[str, Count] | None = None
    hb_ms: int | None = None
    # accepted, duplicate
    trigger_id: Id64 | None = None
    part_id: PartId | None = None
    attempt: int | None = None
    # page, gone, latest, acked: `count` body frames follow; `end` = nothing is newer
    stream: Stream | None = None
    from_seq: Count | None = None
    next_seq: Count | None = None
    first_seq: Count | None = None
    count: Count | None = None
    end: bool | None = None
    upto_seq: Count | None = None
    # image
    image_ref: ImageRef | None = None
    media_type: str | None = None
    # done (admin)
    data: dict[str, str | int | float | bool | None] | None = None


def reply_bytes(reply: Reply) -> bytes:
    """The answer's header frame: compact JSON without the fields that do not apply."""
    return reply.model_dump_json(exclude_none=True).encode()


def json_schemas() -> dict[str, dict]:
    """JSON Schemas (2020-12) of every body, command and reply by name, for `station schema`."""
    models: list[type[Model]] = [*STREAM_MODELS.values(), Reply]
    models += [Hello, Trigger, Fetch, Ack, Latest, Get, StatusQuery, Ping]
    models += [RecipeCommand, ModeCommand, Reset]
    return {model.__name__: model.model_json_schema() for model in models}
