"""What a camera's pace is learned from: frames that come late in bunches are not a fast camera."""

from station.sources.pace import Pace

MS = 1_000_000


def feed(pace, times, first=0):
    for index, t in enumerate(times):
        pace.frame(int(t * MS) + MS, first + index)
    return pace.period_ns / MS


def test_a_steady_camera():
    assert feed(Pace(), range(0, 2000, 20)) == 20


def test_a_slow_camera_is_known_from_its_second_frame_on():
    pace = Pace()
    assert feed(pace, [0, 1000]) == 1000
    assert feed(pace, range(2000, 20_000, 1000), 2) == 1000


def test_frames_found_all_at_once_do_not_make_a_camera_fast():
    times = [*range(0, 4000, 500), *(8000 + n * 0.1 for n in range(8)), *range(8500, 14_000, 500)]
    assert 400 <= feed(Pace(), times) <= 600


def test_a_stall_is_not_part_of_the_pace():
    assert feed(Pace(), [*range(0, 2000, 50), *range(9000, 12_000, 50)]) == 50


def test_stalls_in_a_row_do_not_stretch_what_counts_as_a_stall():
    pace, t = Pace(), 0.0
    feed(pace, range(0, 2000, 20))
    for stall in range(50):  # 230 ms of silence, then three frames
        t = 2000 + stall * 290
        assert feed(pace, [t + 230, t + 250, t + 270], 100 + 3 * stall) == 20


def test_frames_that_were_dropped_count():
    pace = Pace()
    for index in range(0, 300, 3):  # two of three were overwritten
        pace.frame(index * 10 * MS + MS, index)
    assert pace.period_ns == 10 * MS


def test_a_new_child_counts_anew():
    pace = Pace()
    feed(pace, range(0, 2000, 40))
    assert feed(pace, range(2040, 4000, 40), 1 << 32) == 40


def test_the_driver_is_believed_until_frames_are_there():
    pace = Pace()
    pace.told(25)
    assert pace.period_ns == 40 * MS
    pace.told(50)
    assert pace.period_ns == 40 * MS
    assert feed(pace, range(0, 2000, 20)) == 20
