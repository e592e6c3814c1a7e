"""Watching a station without a gap: subscribe, HELLO, FETCH what is missing, then live.

PUB may drop (a full queue, a slow join, a broken line): seq tells, FETCH repairs. The status, five
times a second, reveals a lost last message.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import zmq

from station.schema import STORED, Body, Status, Stream, parse, topic

if TYPE_CHECKING:
    from station.client import Client

RETRY_S = 0.5


class Watch:
    """One subscription. `next` is the seq that is expected next, per stored stream."""

    def __init__(
        self,
        client: "Client",
        socket: zmq.Socket,
        streams: tuple[Stream, ...],
        since: dict[str, int] | None,
        timeout_s: float | None,
    ) -> None:
        self._client, self._socket, self._streams = client, socket, streams
        self._since, self._timeout_s = since, timeout_s
        self._next: dict[Stream, int] = {}
        self._epoch: str | None = None
        self._behind: set[Stream] = set()
        self._heard_at = time.monotonic()

    def bodies(self) -> Iterator[Body | None]:
        """Bodies in seq order per stream; None after `timeout_s` of silence."""
        while not self._begin():
            if self._silent():
                yield None
        while True:
            for stream in sorted(self._behind):
                yield from self._catch_up(stream)
            body = self._receive()
            if body is not None:
                yield from self._take(body)
            elif self._silent():
                yield None

    def _begin(self) -> bool:
        """HELLO (which tells the names in the topics), subscribe, HELLO again: what was stored
        before the second one is FETCHed, what comes later is live."""
        from station.client import NoAnswer, Refused

        try:
            hello = self._client.hello()
            for stream in {*self._streams, Stream.STATUS}:
                self._socket.subscribe(topic(hello.line, hello.station, stream))
            hello = self._client.hello()
        except NoAnswer:
            return False
        except Refused as refused:
            if refused.reply.reply in ("denied",):
                raise
            return False
        self._epoch = hello.epoch
        for stream in self._stored():
            last = (hello.last_seq or {}).get(stream, 0)
            start = last if self._since is None else self._since.get(stream, 0)
            self._next[stream] = start + 1
            if last > start:
                self._behind.add(stream)
        return True

    def _stored(self) -> list[Stream]:
        return [stream for stream in self._streams if stream in STORED]

    def _receive(self) -> Body | None:
        wait_s = 3600.0 if self._timeout_s is None else self._timeout_s
        left_s = RETRY_S if self._behind else wait_s - (time.monotonic() - self._heard_at)
        if not self._socket.poll(max(0, int(left_s * 1000))):
            return None
        frames = self._socket.recv_multipart()
        try:
            return parse(frames[-1])
        except ValueError:
            return None  # not ISP/1 as we know it: readers pass over what they cannot read

    def _silent(self) -> bool:
        if self._timeout_s is None or time.monotonic() - self._heard_at < self._timeout_s:
            return False
        self._heard_at = time.monotonic()
        return True

    def _take(self, body: Body) -> Iterator[Body]:
        self._heard_at = time.monotonic()
        if body.epoch != self._epoch:  # a new ledger: its sequences begin at 1
            self._epoch = self._client.epoch = body.epoch
            self._next = dict.fromkeys(self._stored(), 1)
        if isinstance(body, Status):
            for stream in self._stored():
                if body.last_seq.get(stream, 0) >= self._next[stream]:
                    self._behind.add(stream)
        if body.stream not in STORED:
            if body.stream in self._streams:
                yield body
        elif body.stream in self._next:
            yield from self._in_order(body)

    def _in_order(self, body: Body) -> Iterator[Body]:
        if body.seq > self._next[body.stream]:
            self._behind.add(body.stream)
            yield from self._catch_up(body.stream)
        if body.seq == self._next[body.stream]:
            self._next[body.stream] += 1
            yield body

    def _catch_up(self, stream: Stream) -> Iterator[Body]:
        """FETCH to the end; a station that does not answer is asked again later."""
        from station.client import NoAnswer, Refused

        while stream in self._behind:
            try:
                reply, rows = self._client.fetch(stream, self._next[stream], 256)
            except (NoAnswer, Refused):
                return
            if reply.reply == "gone":
                moved = reply.epoch != self._epoch
                self._epoch = self._client.epoch = reply.epoch
                self._next[stream] = 1 if moved else reply.first_seq or 1
                continue
            if reply.end:
                self._behind.discard(stream)
            for data in rows:
                body = parse(data)
                self._next[stream] = body.seq + 1
                yield body
