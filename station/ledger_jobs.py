"""What waits for the ledger's writer: a job, its future, and how the future gets its answer."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from engines.errors import LedgerError
from station.ledger_group import Group


@dataclass(frozen=True)
class Job:
    """A piece of work: `apply` runs in the transaction, what it returns runs after the commit."""

    future: Future
    apply: Callable[[Group], Callable[[], Any]]
    trigger_id: str | None = None  # set for verdicts: whose fate is open when the commit fails


def running() -> Future:
    """A future nobody can cancel: what was handed to the ledger will be written."""
    future: Future = Future()
    future.set_running_or_notify_cancel()
    return future


def attempt(job: Job, group: Group) -> Callable[[], Any]:
    """Apply one job; what is wrong with it alone (not with the file) is its own answer."""
    try:
        return job.apply(group)
    except (ValueError, LedgerError) as error:
        return lambda error=error: _raise(error)  # type: ignore[misc]


def _raise(error: Exception) -> None:
    raise error


def resolve(future: Future, outcome: Callable[[], Any]) -> None:
    """Give a future its value or its error, as a LedgerError unless it is a ValueError."""
    try:
        value = outcome()
    except (ValueError, LedgerError) as error:
        future.set_exception(error)
    except Exception as error:
        future.set_exception(LedgerError(f"the ledger could not answer: {error}"))
    else:
        future.set_result(value)
