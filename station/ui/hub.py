"""Server-sent events to many pages: one bounded queue each, a slow page loses only its own.

A page that fell behind is told to reload its state instead of being fed old news.
"""

import json
import queue
import threading
from typing import Any

DEPTH = 256  # about ten seconds of a fast line
RESYNC = b"event: resync\ndata: {}\n\n"


def encode(event: str, data: dict[str, Any]) -> bytes:
    """One message in the text/event-stream format."""
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class Subscriber:
    """One page. `get` blocks in the page's own thread."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | None] = queue.Queue(DEPTH)

    def put(self, message: bytes | None) -> None:
        """Give it a message; when it is full, empty it and ask for a fresh state."""
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._drain()
            self._queue.put_nowait(RESYNC)

    def get(self, timeout_s: float) -> bytes | None:
        """The next message; b"" when none came in time; None: the server stops."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return b""

    def _drain(self) -> None:
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return


class Hub:
    """All open pages."""

    def __init__(self, limit: int = 64) -> None:
        self._lock = threading.Lock()
        self._pages: set[Subscriber] = set()
        self._limit = limit

    def __len__(self) -> int:
        with self._lock:
            return len(self._pages)

    def join(self) -> Subscriber | None:
        """A new page, or None when there are too many."""
        with self._lock:
            if len(self._pages) >= self._limit:
                return None
            page = Subscriber()
            self._pages.add(page)
            return page

    def leave(self, page: Subscriber) -> None:
        """The page is gone."""
        with self._lock:
            self._pages.discard(page)

    def send(self, event: str, data: dict[str, Any]) -> None:
        """To every page; encoded once."""
        self._send(encode(event, data))

    def stop(self) -> None:
        """End every page's stream."""
        self._send(None)

    def _send(self, message: bytes | None) -> None:
        with self._lock:
            for page in self._pages:
                page.put(message)
