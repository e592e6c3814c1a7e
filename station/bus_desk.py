"""The desk of the accountable socket: one request in, the right answers out (bus thread only).

It knows sessions, roles, limits and stored answers; the sockets belong to `station.bus`, verdicts
to the ledger, parts to the daemon.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from pydantic import ValidationError

from station.bus_images import Images
from station.bus_limits import Buckets
from station.bus_reply import PendingAdmin, PendingTrigger
from station.bus_sessions import Entry, Route, Session, Sessions, digest_of
from station.bus_types import BusConfig, BusHandler
from station.ledger import Ledger
from station.ledger_types import Committed, FetchPage
from station.schema import STORED, Stream
from station.schema_ctl import (
    Ack,
    AnyCommand,
    Fetch,
    Get,
    Hello,
    Kind,
    Latest,
    Ping,
    Reply,
    StatusQuery,
    Trigger,
    parse_command,
    reply_bytes,
    rid_of,
)
from station.security import LOCAL, Access, Audit, may

log = logging.getLogger("station.bus")

COMMANDS_PER_S, COMMAND_BURST = 1000.0, 500.0  # one observer; gateways are not limited
MAX_READS = 64  # FETCHes and LATESTs waiting for the ledger at once


class Floor(Protocol):
    """What the desk needs of the bus."""

    config: BusConfig

    def send(self, route: Route, frames: list[bytes]) -> None:
        """Send now (bus thread)."""

    def post(self, action: Callable[[], None]) -> None:
        """Run in the bus thread, from any thread."""

    def status_body(self) -> bytes:
        """The status as of now."""

    def published(self) -> dict[str, int]:
        """The newest published seq of each stored stream."""


class Desk:
    """Answers requests. `client` is the public key of the peer, "" where no keys are used."""

    def __init__(
        self,
        floor: Floor,
        ledger: Ledger,
        handler: BusHandler,
        access: Access | None,
        audit: Audit,
    ) -> None:
        self._floor, self._ledger, self._handler = floor, ledger, handler
        self._access, self._audit = access, audit
        self.sessions = Sessions(time.monotonic)
        self._open: dict[str, tuple[Session, Entry, str]] = {}
        self._limits = Buckets(COMMANDS_PER_S, COMMAND_BURST, time.monotonic)
        self._looks = Buckets(floor.config.image_per_s, 10.0, time.monotonic)
        self._images = Images(handler.image)
        self._reads = 0

    def stop(self) -> None:
        """End the helper thread."""
        self._images.stop()

    def request(self, route: Route, client: str, data: bytes) -> None:
        """Deal with one request; whatever it holds, the answer is one of ISP/1."""
        name, role = self._who(client)
        if role not in ("gateway", LOCAL) and not self._limits.take(client):
            return self._say(route, Kind.LIMITED, rid_of(data))
        try:
            command = parse_command(data)
        except ValueError as error:
            return self._say(route, Kind.ERROR, rid_of(data), text=_fault(error))
        if not may(role, command):
            self._audit.write("denied", client=name, role=role, command=command.cmd)
            return self._say(route, Kind.DENIED, command.rid, text=f"not for role {role or 'none'}")
        if isinstance(command, Hello):
            return self._hello(route, command, client, name, role)
        return self._dispatch(route, command, client, data, role)

    def committed(self, row: Committed) -> None:
        """A row is durable: when it is the RESULT of an open TRIGGER, answer it."""
        if row.stream is Stream.RESULT and row.trigger_id in self._open:
            _, entry, _ = self._open.pop(row.trigger_id)
            self._deliver(entry, [row.body], final=True)

    def _who(self, client: str) -> tuple[str, str]:
        """(name, role) of a peer right now: a revoked key has the role "" at once."""
        if self._access is None:
            return LOCAL, LOCAL
        known = self._access.client(client)
        return ("", "") if known is None else (known.name, str(known.role))

    def _dispatch(
        self, route: Route, command: AnyCommand, client: str, data: bytes, role: str
    ) -> None:
        session = self.sessions.find(client, command.session)
        if session is None:
            return self._say(route, Kind.HELLO_FIRST, command.rid)
        match command:
            case Trigger():
                self._trigger(route, command, session, data)
            case Fetch():
                self._fetch(route, command)
            case Ack():
                self._ack(route, command, session)
            case Latest():
                self._latest(route, command)
            case Get():
                self._get(route, command, session, role)
            case StatusQuery():
                header = self._reply(Kind.STATUS, command.rid, count=1)
                self._floor.send(route, [header, self._floor.status_body()])
            case Ping():
                self._say(route, Kind.PONG, command.rid, t_us=time.time_ns() // 1000)
            case _:
                self._admin(route, command, session, data)
        return None

    def _hello(self, route: Route, command: Hello, client: str, name: str, role: str) -> None:
        consumer = command.client if self._access is None else f"{name}/{command.client}"
        session = self.sessions.hello(client, consumer)
        self._say(
            route,
            Kind.HELLO,
            command.rid,
            session=session.id,
            role=role,
            epoch=self._ledger.epoch,
            last_seq=self._floor.published(),
            cursors=self._ledger.cursors.get(consumer, {}),
            hb_ms=self._floor.config.status_ms,
            t_us=time.time_ns() // 1000,
        )

    def _trigger(self, route: Route, command: Trigger, session: Session, data: bytes) -> None:
        received_ns = time.monotonic_ns()
        entry = self._entry(route, command, session, data, quiet=command.wait)
        if entry is None:
            return
        post = partial(self._post_trigger, session, entry, command)
        if command.trigger_id in self._open:
            self._answer_trigger(session, entry, command, Kind.DUPLICATE, {})
            return
        if not self._ledger.healthy:
            self._answer_trigger(session, entry, command, Kind.NOT_READY, {"text": "ledger"})
            return
        self._open[command.trigger_id] = (session, entry, command.rid)
        try:
            self._handler.on_trigger(command, PendingTrigger(session.id, received_ns, post))
        except Exception:
            log.exception("the daemon failed at a trigger")
            self._answer_trigger(
                session, entry, command, Kind.NOT_READY, {"text": "internal error"}
            )

    def _post_trigger(
        self, session: Session, entry: Entry, command: Trigger, kind: Kind, fields: dict
    ) -> None:
        self._floor.post(partial(self._answer_trigger, session, entry, command, kind, fields))

    def _answer_trigger(
        self, session: Session, entry: Entry, command: Trigger, kind: Kind, fields: dict
    ) -> None:
        final = kind is not Kind.ACCEPTED
        opened = self._open.get(command.trigger_id)
        if final and opened is not None and opened[1] is entry:
            del self._open[command.trigger_id]
        header = self._reply(kind, command.rid, trigger_id=command.trigger_id, **fields)
        self._deliver(entry, [header], final=final)

    def _entry(
        self, route: Route, command: AnyCommand, session: Session, data: bytes, *, quiet: bool
    ) -> Entry | None:
        """A new entry to work on; None when the request is a repeat (answered again here)."""
        try:
            entry, new = session.begin(command.rid, digest_of(data), route, quiet)
        except ValueError as error:
            self._say(route, Kind.ERROR, command.rid, text=str(error))
            return None
        if not new:
            for frames in entry.answers:
                self._floor.send(route, frames)
        return entry if new else None

    def _deliver(self, entry: Entry, frames: list[bytes], *, final: bool) -> None:
        for answer in entry.add(frames, final):
            self._floor.send(entry.route, answer)

    def _admin(self, route: Route, command: AnyCommand, session: Session, data: bytes) -> None:
        entry = self._entry(route, command, session, data, quiet=False)
        if entry is None:
            return
        self._audit.write("admin", client=session.consumer, command=command.cmd)

        def answer(kind: Kind, fields: dict) -> None:
            self._deliver(entry, [self._reply(kind, command.rid, **fields)], final=True)

        def post(kind: Kind, fields: dict) -> None:
            self._floor.post(partial(answer, kind, fields))

        try:
            self._handler.on_admin(command, PendingAdmin(post))  # type: ignore[arg-type]
        except Exception:
            log.exception("the daemon failed at %s", command.cmd)
            answer(Kind.ERROR, {"text": "internal error"})

    def _fetch(self, route: Route, command: Fetch) -> None:
        def answer(page: FetchPage) -> None:
            kind = Kind.GONE if page.gone else Kind.PAGE
            header = self._reply(
                kind,
                command.rid,
                stream=page.stream,
                epoch=page.epoch,
                from_seq=page.from_seq,
                next_seq=page.next_seq,
                first_seq=page.first_seq,
                last_seq={str(page.stream): page.last_seq},
                count=len(page.bodies),
                end=page.end,
            )
            self._floor.send(route, [header, *page.bodies])

        read = partial(
            self._ledger.fetch, command.stream, command.epoch, command.from_seq, command.max
        )
        self._ask_ledger(route, command.rid, read, answer)

    def _latest(self, route: Route, command: Latest) -> None:
        def answer(data: bytes | None) -> None:
            count = 0 if data is None else 1
            header = self._reply(Kind.LATEST, command.rid, stream=command.stream, count=count)
            self._floor.send(route, [header] if data is None else [header, data])

        self._ask_ledger(route, command.rid, partial(self._ledger.latest, command.stream), answer)

    def _ack(self, route: Route, command: Ack, session: Session) -> None:
        def answer(upto: int) -> None:
            self._say(route, Kind.ACKED, command.rid, stream=command.stream, upto_seq=upto)

        write = partial(self._ledger.ack, session.consumer, command.stream, command.upto_seq)
        self._ask_ledger(route, command.rid, write, answer)

    def _ask_ledger(
        self,
        route: Route,
        rid: str,
        ask: Callable[[], Future],
        answer: Callable,
    ) -> None:
        """Ask without waiting; the answer (or its error, in words) goes out in the bus thread."""
        if self._reads >= MAX_READS:
            return self._say(route, Kind.LIMITED, rid)
        self._reads += 1

        def finish(future: Future) -> None:
            self._reads -= 1
            error = future.exception()
            if error is None:
                answer(future.result())
            else:
                self._say(route, Kind.ERROR, rid, text=str(error)[:500])

        ask().add_done_callback(lambda future: self._floor.post(partial(finish, future)))
        return None

    def _get(self, route: Route, command: Get, session: Session, role: str) -> None:
        free = role in ("gateway", "admin")
        if not free and not self._looks.take(session.client):
            return self._say(route, Kind.LIMITED, command.rid)

        def answer(found: tuple[dict, bytes] | None) -> None:
            if found is None:
                return self._say(route, Kind.NOT_FOUND, command.rid, image_ref=command.image_ref)
            facts, picture = found
            header = self._reply(
                Kind.IMAGE,
                command.rid,
                image_ref=command.image_ref,
                media_type=str(facts.get("media_type", "image/png")),
                data={k: v for k, v in facts.items() if k != "media_type"} or None,
                count=1,
            )
            return self._floor.send(route, [header, picture])

        def done(found: tuple[dict, bytes] | None) -> None:
            self._floor.post(lambda: answer(found))

        if not self._images.ask(command.image_ref, done):
            self._say(route, Kind.LIMITED, command.rid)
        return None

    def _reply(self, kind: Kind, rid: str, **fields: object) -> bytes:
        config = self._floor.config
        reply = Reply(line=config.line, station=config.station, reply=kind, rid=rid, **fields)  # type: ignore[arg-type]
        return reply_bytes(reply)

    def _say(self, route: Route, kind: Kind, rid: str, **fields: object) -> None:
        self._floor.send(route, [self._reply(kind, rid, **fields)])


def _fault(error: ValueError) -> str:
    """What is wrong with a request, without repeating what the stranger sent."""
    if not isinstance(error, ValidationError):
        return str(error)[:300]
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:100]
    return f"{where}: {first['msg']}"[:300]


def stored_last(ledger: Ledger) -> dict[str, int]:
    """The newest seq of each stored stream as the ledger knows it."""
    return {str(stream): ledger.last_seq(stream) for stream in STORED}
