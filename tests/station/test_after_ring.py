"""What the station remembers of its last parts takes its memory once."""

from station.after import Ring


def test_the_last_ones_are_kept_oldest_first():
    ring = Ring(3)
    assert ring.last() == ()
    for value in (5, 6):
        ring.append(value)
    assert ring.last() == (5, 6)
    for value in (7, 8, 9, 10):
        ring.append(value)
    assert ring.last() == (8, 9, 10)
