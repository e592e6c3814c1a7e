"""Order among several engine workers: verdicts are written as parts were taken, not as they end."""

import queue
import threading
import time

from station.parts import Part

_LOOK_S = 0.01  # a part before may end at its deadline, which nobody tells here


class ReadyQueue(queue.Queue[Part]):
    """Parts ready for the engine; taking one gives it its turn."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.turns = Turns()

    def _get(self) -> Part:  # called under the queue's lock: turns follow the order of taking
        part: Part = super()._get()
        self.turns.enter(part)
        return part


class Turns:
    """Parts between queue and ledger, oldest first."""

    def __init__(self) -> None:
        self._taken = 0
        self._inside: dict[int, tuple[Part, int]] = {}  # by turn: the part and its worker
        self._changed = threading.Condition()

    def enter(self, part: Part) -> None:
        """The calling worker took `part` from the queue."""
        with self._changed:
            self._taken += 1
            part.turn = self._taken
            self._inside[part.turn] = part, threading.get_ident()

    def wait(self, part: Part) -> None:
        """Return when every part that another worker took before has left or is done.

        An engine call that hangs must not take this part's verdict with it: after half of the
        time to its deadline it goes first.
        """
        end = time.monotonic() + max(0, part.deadline_ns - time.monotonic_ns()) / 2e9
        with self._changed:
            while not self._first(part) and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(_LOOK_S, left))

    def _first(self, part: Part) -> bool:
        me = threading.get_ident()
        return all(
            turn >= part.turn or other.done or worker == me
            for turn, (other, worker) in self._inside.items()
        )

    def leave(self, part: Part) -> None:
        """`part` was handed to the ledger, or needs no verdict any more."""
        with self._changed:
            self._inside.pop(part.turn, None)
            self._changed.notify_all()
