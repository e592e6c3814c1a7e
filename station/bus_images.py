"""Pictures for GET, read in a helper thread: a slow disk must not hold the bus."""

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger("station.bus")

MAX_PICTURE = 4 << 20
Found = tuple[dict, bytes] | None


class Images:
    """A small queue in front of the daemon's `image`; full means "limited"."""

    def __init__(self, find: Callable[[str], Found]) -> None:
        self._find = find
        self._queue: queue.Queue = queue.Queue(16)
        self._thread = threading.Thread(target=self._run, name="bus-images", daemon=True)
        self._thread.start()

    def ask(self, ref: str, done: Callable[[Found], None]) -> bool:
        """Look a picture up; `done` is called in the helper thread. False: too many wait."""
        try:
            self._queue.put_nowait((ref, done))
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Let the thread end (it is a daemon thread: a stuck disk does not hold the exit)."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            log.warning("pictures were still being read at the end")

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            ref, done = task
            done(self._look(ref))

    def _look(self, ref: str) -> Found:
        try:
            found = self._find(ref)
        except Exception:
            log.exception("the picture %s could not be read", ref)
            return None
        if found is not None and len(found[1]) > MAX_PICTURE:
            log.error("the picture %s is larger than %d bytes", ref, MAX_PICTURE)
            return None
        return found
