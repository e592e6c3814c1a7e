"""What every command of `station` does with wrong paths, empty arguments and closed pipes."""

import contextlib
import errno
import io
import os
import sys

from engines.errors import UsageError

# OpenCV and FFmpeg write lines of their own between those of the log; what is wrong with a picture
# is in its verdict and in the log. Read when OpenCV is first imported, by children, too.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def check_arguments(argv: list[str]) -> None:
    """UsageError for an empty or blank argument: as a path it would mean the working directory;
    and for one that is not UTF-8: no message, ledger or configuration hash could hold it."""
    before = ""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{argument!r} is not UTF-8: rename that file, or say it so") from None
        option, equals, value = argument.partition("=")
        if argument.startswith("--") and equals and not value.strip():
            raise UsageError(f"{option} is empty: name what it means, or leave it out")
        if not argument.strip():
            what = before if before.startswith("--") else "an argument"
            raise UsageError(f"{what} is empty: name what it means, or leave it out")
        before = argument


def printable_output() -> None:
    """A file name that is not UTF-8 is printed with its bytes escaped instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def sentence_of(error: OSError) -> str | None:
    """One sentence about a file or folder that cannot be used; None: it is about neither."""
    said = error.strerror or str(error)
    if isinstance(error.filename, str | bytes):
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n]
        return f"{' -> '.join(names)}: {said}: check the path and its rights"
    if error.errno in _NO_ROOM:
        return f"the output cannot be written: {said}: check the disk it goes to"
    return None


def pipe_closed(end: SystemExit) -> bool:
    """Whether typer or rich left because the reader of standard output has gone (`| head -1`)."""
    cause = end.__context__
    return isinstance(cause, OSError) and cause.errno == errno.EPIPE


def leave_stdout() -> None:
    """What is still buffered goes nowhere: Python would fail once more when it flushes at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def unforeseen(error: Exception) -> int:
    """Tell what no command foresaw, and its exit code: 2 for a path that cannot be used, else 1.

    Raises it on where STATION_TRACEBACK asks for that.
    """
    if os.environ.get("STATION_TRACEBACK"):
        raise error
    sentence = sentence_of(error) if isinstance(error, OSError) else None
    if sentence is not None:
        leave_stdout()
        print(f"station: {sentence}", file=sys.stderr)
        return UsageError.code
    print(
        f"station: internal error: {type(error).__name__}: {error} "
        "(set STATION_TRACEBACK=1 to see where)",
        file=sys.stderr,
    )
    return 1
