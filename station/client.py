"""A small synchronous ISP/1 client for tail, the operator page and the gateways.

One thread may use it at a time (ZeroMQ sockets are not thread-safe). Between two bodies of
`subscribe()` the same thread may call any other method.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq
from pydantic import ValidationError

from station.address import check_address, connect
from station.client_watch import Watch
from station.keys import ClientIdentity, load_identity
from station.schema import Body, Result, Status, Stream, parse
from station.schema_ctl import Kind, Reply

REFUSALS = frozenset(
    {
        Kind.BUSY,
        Kind.NOT_READY,
        Kind.DUPLICATE,
        Kind.DENIED,
        Kind.LIMITED,
        Kind.NOT_FOUND,
        Kind.ERROR,
        Kind.HELLO_FIRST,
    }
)


class Refused(Exception):
    """The station answered, but not with yes: busy, not_ready, duplicate, denied ... (`reply`)."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.reply}: {reply.text or ''}".rstrip(": "))
        self.reply = reply


class NoAnswer(Exception):
    """Nothing came back in time; the next command connects anew and says HELLO by itself."""


def apply_identity(socket: zmq.Socket, identity: ClientIdentity | None) -> None:
    """Set a client's CURVE keys on an unconnected socket (nothing without an identity)."""
    if identity is not None:
        socket.curve_publickey = identity.public.encode()
        socket.curve_secretkey = identity.secret.encode()
        socket.curve_serverkey = identity.station.encode()


class Client:
    """DEALER to `ctl` and SUB to `pub`. `keys` = the client's key file from `station keys new`,
    `name` = the consumer whose cursors `ack` moves. ConfigError when an address or the key file
    makes no sense."""

    def __init__(
        self,
        ctl: str,
        pub: str | None = None,
        *,
        keys: Path | None = None,
        name: str = "observer",
        timeout_s: float = 2.0,
    ) -> None:
        self._ctl_address = check_address(ctl)
        self._pub_address = None if pub is None else check_address(pub)
        self._identity = None if keys is None else load_identity(keys)
        self.name, self._timeout_s = name, timeout_s
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        self._rid = 0
        self._late: deque[Reply | Result] = deque()
        self._started: set[str] = set()
        self.session: str | None = None
        self.epoch: str | None = None
        self.line = self.station = ""

    def hello(self) -> Reply:
        """Open a session; the reply tells epoch, last_seq, cursors, role, line and station."""
        reply, _ = self._exchange({"cmd": "HELLO", "client": self.name}, self._timeout_s)
        if reply.reply is not Kind.HELLO:
            raise Refused(reply)
        self.session, self.epoch = reply.session, reply.epoch
        self.line, self.station = reply.line, reply.station
        return reply

    def trigger(
        self,
        trigger_id: str,
        part_id: str | None = None,
        deadline_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Trigger and wait for the RESULT; Refused for busy, not_ready, duplicate.

        NoAnswer after `timeout_s` (default: the deadline, if given, plus the client's timeout).
        """
        limit = (deadline_ms or 0) / 1000 + self._timeout_s if timeout_s is None else timeout_s
        rid = self.trigger_start(trigger_id, part_id, deadline_ms)
        for answer in self.answers(limit):
            if isinstance(answer, Result):
                if answer.trigger_id == trigger_id:
                    return answer
            elif answer.rid == rid and answer.reply is Kind.HELLO_FIRST:
                self.session = None  # the station restarted: this trigger was not accepted
                raise Refused(answer)
            elif answer.rid == rid and answer.reply in REFUSALS:
                raise Refused(answer)
        raise NoAnswer(f"no result for trigger {trigger_id} within {limit} s")

    def trigger_start(
        self, trigger_id: str, part_id: str | None = None, deadline_ms: int | None = None
    ) -> str:
        """Send a TRIGGER without waiting; the rid. Answers come from `answers()`."""
        if self.session is None:
            self.hello()
        fields: dict[str, object] = {"cmd": "TRIGGER", "trigger_id": trigger_id}
        if part_id is not None:
            fields["part_id"] = part_id
        if deadline_ms is not None:
            fields["deadline_ms"] = deadline_ms
        rid = self._send(fields)
        self._started.add(rid)
        return rid

    def answers(self, timeout_s: float) -> Iterator[Reply | Result]:
        """What arrives for started triggers (accepted, busy, ..., Result) within the time."""
        end = time.monotonic() + timeout_s
        while True:
            while self._late:
                yield self._late.popleft()
            frames = self._receive(end - time.monotonic())
            if frames is None:
                return
            self._sort(frames, None)

    def fetch(
        self, stream: Stream | str, from_seq: int, limit: int = 100
    ) -> tuple[Reply, list[bytes]]:
        """One page of stored bodies; `reply.reply` is `page` or `gone` (older rows deleted, or
        another epoch: see `first_seq` and `epoch` of the reply)."""
        fields = {"stream": str(stream), "from_seq": from_seq, "max": limit}
        return self._ask({"cmd": "FETCH", **fields})

    def fetch_all(self, stream: Stream | str, from_seq: int = 1) -> Iterator[bytes]:
        """Stored bodies to the end; continues after `gone` with the oldest that is held."""
        while True:
            reply, bodies = self.fetch(stream, from_seq)
            yield from bodies
            gone = reply.reply is Kind.GONE
            self.epoch = reply.epoch
            from_seq = (reply.first_seq if gone else reply.next_seq) or 1
            if not gone and reply.end:
                return

    def ack(self, stream: Stream | str, upto_seq: int) -> Reply:
        """Acknowledge (gateways only); moves a durable cursor."""
        return self._ask({"cmd": "ACK", "stream": str(stream), "upto_seq": upto_seq})[0]

    def latest(self, stream: Stream | str) -> Body | None:
        """The newest body, for screens; gateways pair by trigger id instead."""
        _, bodies = self._ask({"cmd": "LATEST", "stream": str(stream)})
        return parse(bodies[0]) if bodies else None

    def get(self, image_ref: str) -> tuple[dict, bytes] | None:
        """(header with media_type and facts, picture bytes), None if there is none; Refused
        `limited` when asked too often."""
        try:
            reply, frames = self._ask({"cmd": "GET", "image_ref": image_ref})
        except Refused as refused:
            if refused.reply.reply is Kind.NOT_FOUND:
                return None
            raise
        return {"media_type": reply.media_type, **(reply.data or {})}, frames[0]

    def status(self) -> Status:
        """The station's status, asked for."""
        _, frames = self._ask({"cmd": "STATUS"})
        return Status.model_validate_json(frames[0])

    def ping(self) -> Reply:
        """A round trip."""
        return self._ask({"cmd": "PING"})[0]

    def admin(self, cmd: str, timeout_s: float = 60.0, **fields: object) -> Reply:
        """RECIPE, MODE or RESET with their fields; Refused when denied or not done."""
        return self._ask({"cmd": cmd, **fields}, timeout_s)[0]

    def subscribe(
        self,
        streams: tuple[Stream | str, ...],
        since: dict[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Body | None]:
        """Bodies for ever: subscribe, HELLO, catch up by FETCH from `since` (None: from now),
        then live; every gap is filled by FETCH, nothing comes twice or out of order. Yields None
        when nothing came for `timeout_s` (so that the caller can see missed heartbeats)."""
        if self._pub_address is None:
            raise ValueError("this client was made without the address of the PUB socket")
        socket = self._context.socket(zmq.SUB)
        socket.linger = 0
        apply_identity(socket, self._identity)
        _keep_alive(socket)
        connect(socket, self._pub_address)
        watch = Watch(self, socket, tuple(Stream(s) for s in streams), since, timeout_s)
        try:
            yield from watch.bodies()
        finally:
            socket.close(0)

    def close(self) -> None:
        """Close the sockets."""
        self._drop()
        self._context.destroy(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- one request, its answer, and whatever else comes in between ----------------------------

    def _ask(self, fields: dict, timeout_s: float | None = None) -> tuple[Reply, list[bytes]]:
        """A command within the session (opened anew once if the station has forgotten it)."""
        for attempt in (1, 2):
            if self.session is None:
                self.hello()
            more = {"epoch": self.epoch} if fields["cmd"] == "FETCH" else {}
            reply, rest = self._exchange({**fields, **more}, timeout_s or self._timeout_s)
            if reply.reply is not Kind.HELLO_FIRST or attempt == 2:
                break
            self.session = None
        if reply.reply in REFUSALS:
            raise Refused(reply)
        return reply, rest

    def _exchange(self, fields: dict, timeout_s: float) -> tuple[Reply, list[bytes]]:
        rid, end = self._send(fields), time.monotonic() + timeout_s
        while True:
            frames = self._receive(end - time.monotonic())
            if frames is None:
                self._drop()
                raise NoAnswer(f"no answer to {fields['cmd']} within {timeout_s} s")
            reply = self._sort(frames, rid)
            if reply is not None:
                return reply, frames[1:]

    def _send(self, fields: dict) -> str:
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.linger = 0
            apply_identity(self._socket, self._identity)
            _keep_alive(self._socket)
            connect(self._socket, self._ctl_address)
        self._rid += 1
        rid = str(self._rid)
        # A command without a session would be refused as malformed if it said `null` for HELLO.
        session = {} if fields["cmd"] == "HELLO" else {"session": self.session}
        try:
            self._socket.send(json.dumps({"rid": rid, **session, **fields}).encode(), zmq.NOBLOCK)
        except zmq.Again:
            self._drop()
            raise NoAnswer(f"{self._ctl_address} takes no more commands") from None
        return rid

    def _receive(self, timeout_s: float) -> list[bytes] | None:
        if self._socket is None or not self._socket.poll(max(0, int(timeout_s * 1000))):
            return None
        return self._socket.recv_multipart()

    def _sort(self, frames: list[bytes], wanted: str | None) -> Reply | None:
        """The reply if it is the wanted one; answers to started triggers are kept, the rest
        (late answers to requests given up) is dropped."""
        try:
            if b'"reply":' not in frames[0][:400]:
                self._late.append(Result.model_validate_json(frames[0]))
                return None
            reply = Reply.model_validate_json(frames[0])
        except ValidationError:
            return None
        if wanted is not None and reply.rid in (wanted, ""):
            return reply
        if reply.rid in self._started:
            if reply.reply is not Kind.ACCEPTED:
                self._started.discard(reply.rid)
            self._late.append(reply)
        return None

    def _drop(self) -> None:
        """Forget the connection: late answers of it must never meet a later request."""
        if self._socket is not None:
            self._socket.close(0)
        self._socket, self.session = None, None
        self._started.clear()
        self._late.clear()


def _keep_alive(socket: zmq.Socket) -> None:
    # A full queue would stop libzmq's reading, PONGs included: the connection is given up, made
    # anew, and then libzmq 4.3.5 aborts the process (assertion `_input_stopped`). So no limit here:
    # the station's own queue for us has one.
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1500)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
