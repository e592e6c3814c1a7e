"""The file under a recording: flushed and fdatasync'ed on a schedule, `.part` until it is whole.

The MCAP library never syncs; after a power cut only what this class synced is sure to be there:
at most one second or 64 MiB is lost.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

SYNC_BYTES = 64 << 20
SYNC_SECONDS = 1.0


class SyncedStream:
    """A write-only binary stream with `tell`, as `mcap.writer.Writer` wants it.

    `path` is the final name; the file lives at `path` + ".part" until `finish`, locked as long as
    it is written. OSError passes through (FileExistsError: a `.part` of a recording that was
    killed is never overwritten): the owner decides what a full disk means.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part.open("xb")
        lock(self._file)
        self._clock = clock
        self._written = 0
        self._synced = 0
        self._last_sync = clock()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._written

    @property
    def durable(self) -> int:
        """Bytes that survive a power cut."""
        return self._synced

    def write(self, data: bytes) -> int:
        """Append."""
        count = self._file.write(data)
        self._written += count
        return count

    def tell(self) -> int:
        """Position, which is the size: this stream only appends."""
        return self._written

    def flush(self) -> None:
        """Hand what is buffered to the operating system (not yet durable)."""
        self._file.flush()

    def due(self, pending: bool = False) -> bool:
        """Whether a second has passed or 64 MiB were written since the last sync.

        `pending`: the writer holds bytes that are not here yet.
        """
        if self._written == self._synced and not pending:
            return False
        return (
            self._clock() - self._last_sync >= SYNC_SECONDS
            or self._written - self._synced >= SYNC_BYTES
        )

    def sync(self) -> None:
        """Flush and fdatasync."""
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self._synced = self._written
        self._last_sync = self._clock()

    def finish(self) -> Path:
        """Sync, close and give the file its final name, durably."""
        self.sync()
        self._file.close()
        self.part.rename(self.path)
        sync_folder(self.path.parent)
        return self.path

    def abandon(self) -> None:
        """Close without renaming: `recover` takes the `.part` up at the next start."""
        # The disk that failed the write also fails the flush inside close.
        with contextlib.suppress(OSError):
            self._file.close()


def lock(file: IO[bytes]) -> None:
    """Until it is closed, however its process ends. BlockingIOError: another program holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(error.errno, "another program is writing it") from None
    except OSError:  # a file system without locks: nobody knows then, as before
        return


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
