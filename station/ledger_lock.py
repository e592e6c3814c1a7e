"""One process per ledger: an advisory lock the kernel drops when its holder dies."""

import fcntl
import os
from pathlib import Path

from engines.errors import InUseError, LedgerError


class LockFile:
    """Holds `path` locked until `release()` or the end of the process; InUseError if taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LedgerError(
                f"the lock {path} cannot be made ({error}): check the folder"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise InUseError(
                f"{path} is locked by process {holder}: another station uses this ledger; stop it "
                "or name another ledger"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one in. The file stays: removing it would race with a new holder."""
        os.close(self._fd)
