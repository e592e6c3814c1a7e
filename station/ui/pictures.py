"""Pictures for the pages: asked of the station once, kept for all pages, rejects kept longest.

One thread with its own client does all the asking, so that twenty pages cost the station as much
as one, and a station that does not answer blocks no page but its pictures.
"""

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from station.client import Client, NoAnswer, Refused
from station.schema import Result
from station.schema_ctl import Kind

log = structlog.get_logger("ui")
CACHE_BYTES = 192 << 20
WAIT_S = 3.0
# A picture may lag a little behind its verdict; observers are rate-limited by the second.
TRIES = {Kind.NOT_FOUND: 3, Kind.LIMITED: 20, Kind.HELLO_FIRST: 2}
PAUSE_S = 0.08
BACKGROUND = 60  # prefetches waiting at most: a flood of rejects must not delay the last part
NOW, LATER = 0, 1
Picture = tuple[str, bytes]


@dataclass
class _Job:
    ref: str
    done: threading.Event = field(default_factory=threading.Event)
    picture: Picture | None = None


class Pictures:
    """`get` from any thread. `make_client` is called in the asking thread."""

    def __init__(self, make_client: Callable[[], Client], limit: int = CACHE_BYTES) -> None:
        self._make_client = make_client
        self._limit = limit
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0
        self._asked: dict[str, _Job] = {}
        self._jobs: queue.PriorityQueue[tuple[int, int, _Job | None]] = queue.PriorityQueue()
        self._count = 0
        self._client: Client | None = None
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._jobs.put((NOW, 0, None))
        self._thread.join(3)

    def get(self, ref: str) -> Picture | None:
        """(media type, bytes), or None when the station has it no more or does not answer."""
        with self._lock:
            picture = self._cache.get(ref)
            if picture is not None:
                self._cache.move_to_end(ref)
                return picture
        job = self._ask(ref, NOW)
        if job is None or not job.done.wait(WAIT_S):
            return None
        return job.picture

    def prefetch(self, result: Result) -> None:
        """Fetch a reject's pictures while the station still has them."""
        if result.image_ref is None or result.accept:
            return
        for suffix in (":thumb", "", ":map"):
            self._ask(result.image_ref + suffix, LATER)

    def _ask(self, ref: str, priority: int) -> _Job | None:
        with self._lock:
            if priority == LATER and (ref in self._cache or self._jobs.qsize() >= BACKGROUND):
                return None
            # Asked again with haste, a waiting job goes into the queue a second time, in front.
            job = self._asked.setdefault(ref, _Job(ref))
            self._count += 1
            self._jobs.put((priority, self._count, job))
            return job

    def _run(self) -> None:
        while (job := self._jobs.get()[2]) is not None:
            if job.done.is_set():
                continue
            picture = self._fetch(job.ref)
            with self._lock:
                job.picture = picture
                self._asked.pop(job.ref, None)
                if picture is not None:
                    self._keep(job.ref, picture)
            job.done.set()
        if self._client is not None:
            self._client.close()

    def _fetch(self, ref: str) -> Picture | None:
        tries: dict[Kind, int] = {}
        while True:
            try:
                if self._client is None:
                    self._client = self._make_client()
                found = self._client.get(ref)
                if found is not None:
                    return str(found[0]["media_type"]), found[1]
                kind = Kind.NOT_FOUND
            except Refused as error:
                kind = error.reply.reply
            except NoAnswer:
                return None
            tries[kind] = tries.get(kind, 0) + 1
            if tries[kind] >= TRIES.get(kind, 1):
                log.debug("picture_refused", ref=ref, why=kind.value)
                return None
            time.sleep(PAUSE_S)

    def _keep(self, ref: str, picture: Picture) -> None:
        self._cache[ref] = picture
        self._bytes += len(picture[1])
        while self._bytes > self._limit and len(self._cache) > 1:
            _, (_, data) = self._cache.popitem(last=False)
            self._bytes -= len(data)
