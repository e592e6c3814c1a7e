"""The answers a daemon gives later and from any thread: each goes back into the bus thread."""

from collections.abc import Callable

from station.bus_types import Scalar
from station.schema_ctl import Kind

Post = Callable[[Kind, dict], None]


class PendingTrigger:
    """One TRIGGER on its way through the daemon (bus_types.TriggerReply)."""

    def __init__(self, session: str, received_ns: int, post: Post) -> None:
        self._session, self._received_ns, self._post = session, received_ns, post

    @property
    def session(self) -> str:
        """The session that asked."""
        return self._session

    @property
    def received_ns(self) -> int:
        """Monotonic time of receipt."""
        return self._received_ns

    def accepted(self, part_id: str, attempt: int) -> None:
        """The part is PENDING; its RESULT follows."""
        self._post(Kind.ACCEPTED, {"part_id": part_id, "attempt": attempt})

    def busy(self) -> None:
        """Nothing was opened."""
        self._post(Kind.BUSY, {})

    def not_ready(self, why: str) -> None:
        """Nothing was opened."""
        self._post(Kind.NOT_READY, {"text": why[:500]})

    def duplicate(self) -> None:
        """The trigger id is known; no verdict is given away."""
        self._post(Kind.DUPLICATE, {})


class PendingAdmin:
    """One RECIPE, MODE or RESET on its way through the daemon (bus_types.AdminReply)."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def done(self, **data: Scalar) -> None:
        """It is done."""
        self._post(Kind.DONE, {"data": data})

    def refused(self, why: str) -> None:
        """It was not done."""
        self._post(Kind.ERROR, {"text": why[:500]})
