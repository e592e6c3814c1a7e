"""The watched folder: what comes again is inspected again, and a large tree costs little."""

import os
import time

import pytest

from station.settings import SourceSettings
from station.sources import watched
from station.sources.folder import FolderSource, is_picture
from station.sources.watched import WatchedFolder


class Watcher:
    """A watched folder with a clock that moves .15 s a look."""

    def __init__(self, monkeypatch, folder):
        self.now = 100.0
        monkeypatch.setattr(watched.time, "monotonic", lambda: self.now)
        self.folder = WatchedFolder(folder, is_picture)

    def look(self, times=4):
        found = []
        for _ in range(times):
            self.now += 0.15
            found += [path.name for path in self.folder.look()]
        return found


@pytest.fixture
def watcher(monkeypatch, tmp_path):
    return Watcher(monkeypatch, tmp_path)


def write(path, data, mtime_ns=None):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    if mtime_ns:
        os.utime(path, ns=(mtime_ns, mtime_ns))


def test_a_name_that_comes_again_is_inspected_again(tmp_path, watcher):
    one = tmp_path / "img_1.png"
    write(one, b"a")
    assert watcher.look() == ["img_1.png"]
    assert watcher.look() == []
    one.unlink()
    assert watcher.look() == []
    write(one, b"a")  # the very same bytes, from a counter that began again
    assert watcher.look() == ["img_1.png"]
    write(one, b"bb")  # written over in place: the folder's own time does not change
    assert watcher.look() == ["img_1.png"]
    write(tmp_path / "new", b"c")
    (tmp_path / "new").rename(one)
    assert watcher.look() == ["img_1.png"]
    assert watcher.look() == []


def test_what_is_there_at_the_start_comes_at_once(tmp_path, watcher):
    write(tmp_path / "b.png", b"1")
    write(tmp_path / "day" / "a.png", b"1")
    assert [path.name for path in watcher.folder.present()] == ["b.png", "a.png"]
    assert watcher.look() == []


def test_new_folders_hidden_files_and_those_that_go_at_once(tmp_path, watcher):
    assert watcher.look() == []
    write(tmp_path / "day" / "b.png", b"1")
    write(tmp_path / "day" / "a.png", b"1")
    write(tmp_path / ".hidden.png", b"1")
    write(tmp_path / "notes.txt", b"1")
    assert watcher.look(1) == []
    (tmp_path / "day" / "b.png").unlink()
    assert watcher.look() == ["a.png"]
    (tmp_path / "day" / "a.png").unlink()
    (tmp_path / "day").rmdir()
    assert watcher.look() == []
    write(tmp_path / "day" / "a.png", b"1")
    assert watcher.look() == ["a.png"]
    assert set(watcher.folder._known) == {str(tmp_path), str(tmp_path / "day")}


def test_a_file_is_left_alone_while_it_is_written(tmp_path, watcher):
    for size in range(1, 8):
        write(tmp_path / "slow.png", b"x" * size, mtime_ns=size)
        assert watcher.look(1) == []
    assert watcher.look() == ["slow.png"]


def test_a_folder_that_is_away_for_a_while_does_not_come_back_as_new(tmp_path, monkeypatch):
    share, away = tmp_path / "share", tmp_path / "away"
    write(share / "a.png", b"1")
    watcher = Watcher(monkeypatch, share)
    assert watcher.look() == ["a.png"]
    share.rename(away)
    assert watcher.look() == []
    away.rename(share)
    write(share / "b.png", b"1")
    assert watcher.look() == ["b.png"]


def test_a_share_that_comes_back_keeps_its_folders_and_what_was_settling(tmp_path, monkeypatch):
    share, away = tmp_path / "share", tmp_path / "away"
    share.mkdir()
    write(share / "sub" / "a.png", b"1")
    watcher = Watcher(monkeypatch, share)
    assert watcher.look() == ["a.png"]
    write(share / "sub" / "b.png", b"1")
    assert watcher.look(1) == []  # it settles
    for folder in (share / "sub", share):
        os.utime(folder, ns=(1, 1))  # long ago: nothing says that they must be listed again
    share.rename(away)
    assert watcher.look() == []
    away.rename(share)
    assert watcher.look() == ["b.png"]
    write(share / "sub" / "c.png", b"1")
    assert watcher.look() == ["c.png"]


def test_a_large_tree_that_rests_is_not_listed_and_its_files_are_looked_at_in_turn(
    tmp_path, watcher, monkeypatch
):
    for day in range(5):
        for n in range(40):
            write(tmp_path / f"d{day}" / f"{n:02d}.png", b"1")
    for folder in (tmp_path, *tmp_path.glob("d*")):
        os.utime(folder, ns=(1, 1))  # long ago
    assert len(watcher.look()) == 200
    listed, asked = [], []
    real_scan, real_key = os.scandir, watched.key_of
    monkeypatch.setattr(watched.os, "scandir", lambda f: (listed.append(f), real_scan(f))[1])

    def key_of(path):
        asked.append(str(path))
        watcher.now += 0.001  # a slow disk
        return real_key(path)

    monkeypatch.setattr(watched, "key_of", key_of)
    write(tmp_path / "d3" / "07.png", b"22")
    assert watcher.look(1) == []
    assert len(asked) < 25, "one look is bounded"
    assert watcher.look(40) == ["07.png"]
    assert listed == []
    write(tmp_path / "d1" / "99.png", b"2")
    assert watcher.look(12) == ["99.png"]
    assert set(listed) == {str(tmp_path / "d1")}


def test_a_watched_list_gives_what_was_added_or_written_again(tmp_path):
    names = tmp_path / "list.txt"
    write(tmp_path / "a.png", b"1")
    names.write_text("a.png\n")
    source = FolderSource(names, SourceSettings(spec=str(names), watch=True))
    source.open()

    def read():
        end, found = time.monotonic() + 30, []
        while not found and time.monotonic() < end:
            found += [frame.name] if (frame := source.read(0.05)) else []
        return found

    assert read() == ["a.png"]
    names.write_text("a.png\nb.png\n")
    write(tmp_path / "b.png", b"1")
    assert read() == ["b.png"]
    write(tmp_path / "a.png", b"22")
    assert read() == ["a.png"]
