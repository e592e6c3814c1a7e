"""Sessions of the accountable socket, and the answers stored in them (bus thread only).

Answers are stored per (client key, session, rid) and die with the session: a repeated request is
answered again, never done again. Numbers are bounded per client key, so a flood of HELLOs from one
key can never push out the session of another.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from station.schema import new_id

MAX_SESSIONS = 64  # per client key
MAX_ANSWERS = 512  # per session; an older repeated TRIGGER meets the ledger's `duplicate`
IDLE_S = 3600.0
Route = tuple[bytes, ...]


@dataclass
class Entry:
    """One request with side effects and what was answered to it so far.

    `route` is where its latest copy came from; `quiet` (REQ clients) wants the last answer only.
    """

    digest: bytes
    route: Route
    quiet: bool
    answers: list[list[bytes]] = field(default_factory=list)
    final: bool = False

    def add(self, frames: list[bytes], final: bool) -> list[list[bytes]]:
        """Store an answer; the frames to send now (none when quiet and not final)."""
        if self.final or (self.quiet and not final):
            return []
        self.final = final
        self.answers.append(frames)
        return [frames]


@dataclass
class Session:
    """One HELLO: who asked, under which consumer name cursors move."""

    id: str
    client: str
    consumer: str
    used_at: float
    entries: OrderedDict[str, Entry] = field(default_factory=OrderedDict)

    def begin(self, rid: str, digest: bytes, route: Route, quiet: bool) -> tuple[Entry, bool]:
        """The entry of a request id and whether it is new. ValueError: rid of another request."""
        entry = self.entries.get(rid)
        if entry is None:
            entry = self.entries[rid] = Entry(digest, route, quiet)
            self._trim()
            return entry, True
        if entry.digest != digest:
            raise ValueError("this rid was used for another request in this session")
        entry.route = route
        return entry, False

    def _trim(self) -> None:
        """Forget the oldest finished answers; what is still open stays."""
        for rid in [rid for rid, entry in self.entries.items() if entry.final]:
            if len(self.entries) <= MAX_ANSWERS:
                break
            del self.entries[rid]


def digest_of(request: bytes) -> bytes:
    """What tells a repeated request from another one with the same rid."""
    return hashlib.sha256(request).digest()[:16]


class Sessions:
    """All sessions, by client key."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._clients: dict[str, OrderedDict[str, Session]] = {}

    def __len__(self) -> int:
        return sum(len(sessions) for sessions in self._clients.values())

    def hello(self, client: str, consumer: str) -> Session:
        """A new session; the least recently used one of this client gives way when full."""
        own = self._clients.setdefault(client, OrderedDict())
        while len(own) >= MAX_SESSIONS:
            own.popitem(last=False)
        session = Session(id=new_id(), client=client, consumer=consumer, used_at=self._now())
        own[session.id] = session
        return session

    def find(self, client: str, session_id: str | None) -> Session | None:
        """The client's own session of that id, now most recently used; None if unknown."""
        own = self._clients.get(client)
        session = None if own is None or session_id is None else own.get(session_id)
        if own is None or session is None:
            return None
        session.used_at = self._now()
        own.move_to_end(session.id)
        return session

    def drop_client(self, client: str) -> None:
        """End all sessions of a revoked key."""
        self._clients.pop(client, None)

    def expire(self) -> int:
        """End sessions unused for an hour; how many."""
        before, limit = len(self), self._now() - IDLE_S
        for client, own in list(self._clients.items()):
            for session in [s for s in own.values() if s.used_at < limit]:
                del own[session.id]
            if not own:
                del self._clients[client]
        return before - len(self)
