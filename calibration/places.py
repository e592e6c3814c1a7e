"""Where a recipe is made and how it comes into place: one maker at a time, nothing half done."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.errors import InUseError, RecipeError


@contextlib.contextmanager
def being_made(root: Path, name: str) -> Iterator[Path]:
    """An empty folder in which recipe `name` is made; what is left of it at the end is removed.

    One at a time: InUseError (exit 9) when another process makes the same recipe, RecipeError where
    the folder cannot be written.
    """
    folder = root / f".{name}.part"
    with _lock(root, name):
        shutil.rmtree(folder, ignore_errors=True)
        with _told(root):
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _told(root: Path) -> Iterator[None]:
    """What the file system refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        place = error.filename or root
        raise RecipeError(f"{place}: {error.strerror}: check the folder and its rights") from error


@contextlib.contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    with _told(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{name}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"recipe '{name}' is being made by another process: wait until it has ended"
            ) from None
        yield


def bring_back(root: Path, name: str) -> None:
    """Where a new recipe was being put in place when the power went, the one before comes back."""
    previous, unfinished = root / f".{name}.previous", root / f".{name}.part"
    if not (root / name).exists() and previous.is_dir() and unfinished.is_dir():
        with contextlib.suppress(OSError), (root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            previous.rename(root / name)


def put_in_place(staging: Path, final: Path) -> None:
    """Rename the finished folder into place; the older recipe stays as `.<name>.previous`."""
    previous = final.parent / f".{final.name}.previous"
    with _told(final.parent):
        shutil.rmtree(previous, ignore_errors=True)
        if final.exists():
            final.rename(previous)
        try:
            staging.rename(final)
        except OSError:
            if previous.exists():
                previous.rename(final)
            raise
