"""Re-inspection of an archive or folder over processes: what would this recipe say of all of it?

The engines, the recipe and the steps are those of `station run`; there is no bus and no ledger, as
nothing waits for these verdicts. The report is JSON lines: a header that names recipe and engine,
then one row per picture in sorted order. A run that was cut goes on where its report ends. Many
machines share the work by `--shard i/n`, their reports are concatenated; or by `--ray ADDRESS`.
"""

import contextlib
import json
import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engines.errors import StationError, UsageError
from station import reinspect_work
from station.inspection import Product
from station.reinspect_items import Item, chunks
from station.reinspect_work import Row
from station.settings import Settings

CHUNK = 16
"""Pictures per message to a worker: the hand-over costs about 0.3 ms, a picture 10 ms and more."""
AHEAD = 3
"""Chunks in flight per worker: enough that none waits, few enough that a million items do not."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Summary:
    """What a re-inspection found. `changed`: (was, is) -> count where an archive said otherwise."""

    out: Path
    parts: int
    fresh: int
    verdicts: dict[str, int]
    changed: dict[tuple[str, str], int]
    seconds: float


def header(product: Product) -> dict[str, Any]:
    """What decides every verdict of a report; a report goes on only under the same."""
    return {
        "reinspect": 1,
        "recipe": product.name,
        "recipe_sha": product.sha,
        "bundle_sha": product.bundle_sha,
        "engine_sha": product.engine.engine_sha,
        "precision": product.engine.precision,
        "threshold": product.threshold,
    }


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def done_before(path: Path, head: dict[str, Any]) -> list[Row]:
    """Rows of a report that was begun; [] when there is none.

    What a cut left behind the last whole line is removed from the file, once all of it has been
    found to be ours. Raises UsageError, with the file as it was, when it is no report or belongs
    to another recipe or engine; OSError when it cannot be read.
    """
    if not path.exists():
        return []
    if not path.is_file():  # a device has no end to read to, a pipe none to go on at
        raise UsageError(f"{path} is not a file: name another --out")
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    rows: list[Row] = []
    if end:
        rows = _rows_in(path, data[:end], head)
    elif not _line(head).startswith(data):  # a cut in the header left the beginning of our own
        raise UsageError(f"{path} is not a report of station reinspect: name another --out")
    if end != len(data):
        os.truncate(path, end)
    return rows


def _rows_in(path: Path, lines: bytes, head: dict[str, Any]) -> list[Row]:
    """The rows behind the header. UsageError: not a report, or not one that may go on here."""
    try:
        found, *rows = [json.loads(line) for line in lines.splitlines()]
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a report of station reinspect ({error}): name another --out"
        ) from error
    ours = isinstance(found, dict) and found.get("reinspect") == 1
    if not ours or not all(
        isinstance(row, dict) and {"picture", "verdict"} <= {*row} for row in rows
    ):
        raise UsageError(f"{path} is not a report of station reinspect: name another --out")
    other = [key for key, value in head.items() if found.get(key) != value]
    if other:
        raise UsageError(
            f"{path} was begun with another {', '.join(other)}: name another --out, or remove it"
        )
    return rows


def workers_settings(settings: Settings, workers: int) -> Settings:
    """Settings of one of several workers: its share of the cores, at least one."""
    cores = len(os.sched_getaffinity(0))
    engine = settings.engine.model_copy(update={"threads": max(1, cores // workers)})
    return settings.model_copy(update={"engine": engine})


def _in_order(
    pool: ProcessPoolExecutor, batches: Iterable[list[Item]], ahead: int
) -> Iterator[list[Row]]:
    waiting: deque[Future[list[Row]]] = deque()
    for batch in batches:
        waiting.append(pool.submit(reinspect_work.work, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def _rows(
    settings: Settings, product: Product, todo: Sequence[Item], workers: int, ray: str | None
) -> Iterator[Iterator[list[Row]]]:
    """Rows chunk by chunk, in order: in this process, over `workers` of them, or on a cluster."""
    batches = chunks(todo, CHUNK)
    if ray is not None:
        from station.reinspect_ray import cluster, rows_of

        with cluster(ray) as nodes:
            share = workers_settings(settings, len(os.sched_getaffinity(0)))
            with rows_of(nodes, share, batches, workers, AHEAD) as found:
                yield found
        return
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1 or len(todo) <= CHUNK:
        yield ([reinspect_work.inspect(item, product) for item in batch] for batch in batches)
        return
    share = workers_settings(settings, workers)
    context = multiprocessing.get_context("spawn")  # threads of the runtime do not survive a fork
    with ProcessPoolExecutor(workers, context, reinspect_work.set_up, (share,)) as pool:
        try:
            yield _in_order(pool, batches, workers * AHEAD)
        except BrokenProcessPool as error:
            raise StationError(
                "a worker of the re-inspection was killed (memory?): run the same command again, "
                "with fewer --workers; it goes on where the report ends"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        file.write(_line(row))
    file.flush()


def _count(rows: Iterable[Row]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    verdicts: Counter[str] = Counter()
    changed: Counter[tuple[str, str]] = Counter()
    for row in rows:
        verdicts[row["verdict"]] += 1
        was = row.get("was")
        if was and was["verdict"] != row["verdict"]:
            changed[was["verdict"], row["verdict"]] += 1
    return verdicts, changed


def reinspect(
    settings: Settings,
    work: Sequence[Item],
    out: Path,
    workers: int = 0,
    progress: Progress | None = None,
    ray: str | None = None,
) -> Summary:
    """Inspect every item and write the report; what it holds already is not inspected again.

    workers 0: one per core; ray: address of a cluster whose cores are meant. Raises StationError
    (with its exit code) when recipe or engine cannot be opened, UsageError when `out` belongs to
    something else, ConfigError when there is no such cluster.
    """
    product = reinspect_work.open_product(settings)  # first and alone: it may rebuild the recipe
    head = header(product)
    rows = done_before(out, head)
    seen = {row["picture"] for row in rows}
    todo = [item for item in work if item.key not in seen]
    verdicts, changed = _count(rows)
    begin, count = time.monotonic(), len(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.open("ab") as file,
        _rows(settings, product, todo, workers, ray) as found,
    ):
        if file.tell() == 0:
            _write(file, [head])
        for batch in found:
            _write(file, batch)
            more_verdicts, more_changed = _count(batch)
            verdicts += more_verdicts
            changed += more_changed
            count += len(batch)
            if progress is not None:
                progress(count, len(rows) + len(todo))
        os.fsync(file.fileno())
    return Summary(out, count, len(todo), dict(verdicts), dict(changed), time.monotonic() - begin)
