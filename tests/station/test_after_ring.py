"""What the station remembers of its last parts takes its memory once."""

from station import after
from station.after import Aftermath, ObserverThread, Ring


def test_the_last_ones_are_kept_oldest_first():
    ring = Ring(3)
    assert ring.last() == ()
    for value in (5, 6):
        ring.append(value)
    assert ring.last() == (5, 6)
    for value in (7, 8, 9, 10):
        ring.append(value)
    assert ring.last() == (8, 9, 10)


class Sink:
    """An observer that flushes what it holds when it ends."""

    def __init__(self):
        self.parts, self.closed = 0, False

    def part(self, _record):
        self.parts += 1

    def close(self):
        self.closed = True


def test_every_observer_ends_in_the_time_of_one(monkeypatch):
    """Each woke by itself, one after the other: the recorder's file was left open at the end."""
    monkeypatch.setattr(after, "_TICK_S", 3600.0)
    sinks = [Sink() for _ in range(4)]
    aftermath = Aftermath(None)
    aftermath.observers += [ObserverThread(str(n), sink) for n, sink in enumerate(sinks)]
    for observer in aftermath.observers:
        observer.offer("part", None)
    aftermath.close(20.0)
    assert [(sink.parts, sink.closed) for sink in sinks] == [(1, True)] * 4


class Odd(Sink):
    """It raises on every second part, and when it ends."""

    def part(self, record):
        if record % 2:
            raise ValueError(f"odd part {record}")
        super().part(record)

    def close(self):
        super().close()
        raise RuntimeError("at the end, too")


def test_an_observer_that_raises_loses_that_part_and_goes_on():
    odd, told = Odd(), []
    thread = ObserverThread("archive", odd, 64, lambda *event: told.append(event))
    for number in range(10):
        thread.offer("part", number)
    thread.close(5.0)
    assert (odd.parts, thread.dropped, odd.closed) == (5, 5, True)
    assert told == [
        ("observer_failed", "error", "archive: ValueError: odd part 1; left out, it goes on")
    ], "once a minute"
