"""Re-inspection over the machines of a Ray cluster: the same workers, as actors (extra `ray`).

Every machine needs this package and sees pictures, recipe and bundle under the same paths (a shared
disk); rows come back in order, so the report is byte for byte that of one machine.
"""

import contextlib
import logging
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.errors import ConfigError, StationError, UsageError
from station import reinspect_work
from station.reinspect_items import Item
from station.reinspect_work import Row
from station.settings import Settings

LOCAL = "local"
"""The address that starts Ray on this machine alone."""


class Worker:
    """One core of the cluster: opens the recipe once, then inspects what it is handed."""

    def __init__(self, settings: Settings) -> None:
        reinspect_work.set_up(settings)

    def work(self, batch: Sequence[Item]) -> list[Row]:
        """Rows of a batch, in its order."""
        return reinspect_work.work(batch)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Ray, connected. ConfigError: it is not installed, or nothing answers at the address."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--ray needs ray ({error}): pip install ray") from None
    try:
        _reach(address)
        ray.init(
            None if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--ray {address}: no cluster answers ({said}); name HOST:PORT, auto, or {LOCAL}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """OSError, ValueError: nothing listens at HOST:PORT. Ray itself would wait for minutes."""
    if ":" in address:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), 5).close()


def _anywhere(settings: Settings) -> Settings:
    """The same with whole paths: actors have working directories of their own."""
    recipe = settings.recipe.model_copy(update={"root": settings.recipe.root.resolve()})
    bundle = Path(settings.engine.bundle)
    found = str(bundle.resolve()) if bundle.is_dir() else settings.engine.bundle
    engine = settings.engine.model_copy(update={"bundle": found})
    return settings.model_copy(update={"recipe": recipe, "engine": engine})


@contextlib.contextmanager
def rows_of(
    ray: Any, settings: Settings, batches: Iterable[list[Item]], workers: int, ahead: int
) -> Iterator[Iterator[list[Row]]]:
    """Rows batch by batch, in order, from `workers` actors (0: one per core of the cluster)."""
    from ray.util import ActorPool

    cores = int(ray.cluster_resources().get("CPU", 0))
    count = workers or cores
    if not 0 < count <= cores:
        raise UsageError(f"--workers {workers}: the cluster has {cores} cores")
    actor = ray.remote(num_cpus=1)(Worker)
    pool = ActorPool([actor.remote(_anywhere(settings)) for _ in range(count)])

    def in_order() -> Iterator[list[Row]]:
        waiting = 0
        for batch in batches:
            whole = [replace(item, path=item.path.resolve()) for item in batch]
            pool.submit(lambda one, items: one.work.remote(items), whole)
            waiting += 1
            if waiting >= count * ahead:
                yield pool.get_next()
                waiting -= 1
        while pool.has_next():
            yield pool.get_next()

    try:
        yield in_order()
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, StationError) else error
        raise StationError(f"a worker of the cluster could not begin: {cause}") from error
    except ray.exceptions.RayError as error:
        raise StationError(
            "a worker of the re-inspection was lost (machine or memory): run the same command "
            f"again; it goes on where the report ends ({type(error).__name__})"
        ) from error
