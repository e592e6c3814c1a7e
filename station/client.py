"""A small synchronous ISP/1 client for tail, the operator page and the gateways.

One thread may use it at a time (ZeroMQ sockets are not thread-safe).
"""

from collections.abc import Iterator
from pathlib import Path

from station.schema import Body, Result, Status, Stream
from station.schema_ctl import Reply


class Refused(Exception):
    """The station answered, but not with yes: busy, not_ready, duplicate, denied ... (`reply`)."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.reply}: {reply.text or ''}".rstrip(": "))
        self.reply = reply


class NoAnswer(Exception):
    """Nothing came back in time; the next command says HELLO again by itself."""


class Client:
    """DEALER to `ctl` and SUB to `pub`. `keys` = the client's key file from `station keys new`."""

    session: str | None
    epoch: str | None

    def __init__(
        self,
        ctl: str,
        pub: str | None = None,
        *,
        keys: Path | None = None,
        name: str = "observer",
        timeout_s: float = 2.0,
    ) -> None:
        raise NotImplementedError

    def hello(self) -> Reply:
        """Open a session; the reply tells epoch, last_seq, cursors, role, line and station."""
        raise NotImplementedError

    def trigger(
        self, trigger_id: str, part_id: str | None = None, deadline_ms: int | None = None
    ) -> Result:
        """Trigger and wait for the RESULT; Refused for busy, not_ready, duplicate."""
        raise NotImplementedError

    def trigger_start(
        self, trigger_id: str, part_id: str | None = None, deadline_ms: int | None = None
    ) -> str:
        """Send a TRIGGER without waiting; the rid. Answers come from `answers()`."""
        raise NotImplementedError

    def answers(self, timeout_s: float) -> Iterator[Reply | Result]:
        """What arrived for started triggers (accepted, busy, ..., Result) within the time."""
        raise NotImplementedError

    def fetch(
        self, stream: Stream | str, from_seq: int, limit: int = 100
    ) -> tuple[Reply, list[bytes]]:
        """One page of stored bodies."""
        raise NotImplementedError

    def fetch_all(self, stream: Stream | str, from_seq: int = 1) -> Iterator[bytes]:
        """Stored bodies to the end; continues after `gone` with the oldest that is held."""
        raise NotImplementedError

    def ack(self, stream: Stream | str, upto_seq: int) -> Reply:
        """Acknowledge (gateways only)."""
        raise NotImplementedError

    def latest(self, stream: Stream | str) -> Body | None:
        """The newest body, for screens."""
        raise NotImplementedError

    def get(self, image_ref: str) -> tuple[str, bytes]:
        """(media type, picture bytes); Refused not_found or limited."""
        raise NotImplementedError

    def status(self) -> Status:
        """The station's status, asked for."""
        raise NotImplementedError

    def ping(self) -> Reply:
        """A round trip."""
        raise NotImplementedError

    def admin(self, cmd: str, **fields: object) -> Reply:
        """RECIPE, MODE or RESET with their fields; Refused when denied."""
        raise NotImplementedError

    def subscribe(
        self,
        streams: tuple[Stream | str, ...],
        since: dict[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Body | None]:
        """Bodies for ever: subscribe, HELLO, catch up by FETCH from `since` (None: from now),
        then live; every gap is filled by FETCH, nothing comes twice or out of order. Yields None
        when nothing came for `timeout_s` (so that the caller can see missed heartbeats)."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the sockets."""
        raise NotImplementedError
