"""The archive: what is kept, what goes first, what an export looks like."""

import csv
import errno
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import uikit

from calibration.datasets import load_dataset, read_mask
from engines.errors import SourceError, UsageError
from station.archive import Archive, class_of
from station.archive_export import export
from station.archive_index import ArchiveIndex, Queue, entries
from station.record_budget import Unit
from station.settings import ArchiveSettings


def archive(folder, events=None, values=None, **options):
    made = Archive(ArchiveSettings(folder=folder), events or uikit.Events(), **options)
    made._values |= values or {}
    return made


def test_each_verdict_has_its_class():
    assert class_of(uikit.result(1, "NG"), 0.1) == "ng"
    assert class_of(uikit.result(1, "UNDECIDED"), 0.1) == "undecided"
    assert class_of(uikit.result(1, "ERROR"), 0.1) == "error"
    assert class_of(uikit.result(1, "OK", score=0.46), 0.1) == "borderline"
    assert class_of(uikit.result(1, "OK", score=0.2), 0.1) == "ok"


def test_rejects_borderline_and_one_in_n_are_kept(tmp_path):
    keeper = archive(tmp_path, values={"every_ok": 5})
    for seq in range(1, 21):
        keeper.part(uikit.record(seq, "OK", size=8))
    keeper.part(uikit.record(21, "NG", size=8))
    keeper.part(uikit.record(22, "OK", size=8, score=0.49))
    kept = {kind: len(entries(tmp_path, kind)) for kind in ("ok", "ng", "borderline")}
    assert kept == {"ok": 4, "ng": 1, "borderline": 1}
    (entry,) = entries(tmp_path, "ng")
    assert entry.read(".json") == uikit.record(21, "NG").body
    pixels = cv2.imdecode(np.fromfile(entry.picture, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(pixels, uikit.record(21, "NG", size=8).frame.image)


def test_a_cameras_own_bytes_are_kept_as_they_came(tmp_path):
    keeper = archive(tmp_path)
    record = uikit.record(1, "NG", jpeg=True)
    keeper.part(record)
    assert entries(tmp_path, "ng")[0].picture.read_bytes() == record.frame.raw


def test_a_full_class_loses_its_oldest_and_no_other_class_does(tmp_path):
    events = uikit.Events()
    size = sum(len(d) for d in _one(tmp_path / "probe").values())
    settings = ArchiveSettings(folder=tmp_path / "a")
    keeper = Archive(settings, events)
    keeper._budgets["ng"]._limit = size * 4
    keeper.part(uikit.record(1, "OK", size=8))
    for seq in range(2, 12):
        keeper.part(uikit.record(seq, "NG", size=8))
        held = sum(p.stat().st_size for p in (tmp_path / "a" / "ng").rglob("*") if p.is_file())
        assert held <= size * 4
    assert [e.trigger_id for e in entries(tmp_path / "a", "ng")][-1] == f"{11:016x}"
    assert len(entries(tmp_path / "a", "ok")) == 1
    assert events.kinds() == ["archive_budget"]


def _one(folder):
    keeper = archive(folder)
    keeper.part(uikit.record(99, "NG", size=8))
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_budgets_count_what_an_earlier_run_left(tmp_path):
    first = archive(tmp_path)
    for seq in range(1, 4):
        first.part(uikit.record(seq, "NG", size=8))
    second = archive(tmp_path)
    assert second._budgets["ng"].state.used == first._budgets["ng"].state.used > 0
    assert second.image(f"{2:016x}", "")[0] == "image/png"


def test_a_failing_disk_is_told_and_never_raises(tmp_path, monkeypatch):
    events = uikit.Events()
    keeper = archive(tmp_path, events)

    def fail(_path, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    keeper.part(uikit.record(1, "NG", size=8))
    keeper.part(uikit.record(2, "NG", size=8))
    assert events.kinds() == ["archive_failed"]


def on_disk(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_descriptions_are_asked_for_and_counted_too(tmp_path):
    keeper = archive(tmp_path)
    limit = keeper._budgets["ng"]._limit = 100_000
    for seq in range(1, 41):
        keeper.part(uikit.record(seq, "NG", size=8))
        keeper.message("desc", uikit.description(seq, "long " * 390))
        assert on_disk(tmp_path) == keeper._budgets["ng"].state.used <= limit
    kept = entries(tmp_path, "ng")
    assert 0 < len(kept) < 40
    assert all(entry.read(".desc.json") for entry in kept)
    keeper.message("desc", uikit.description(40, "short"))  # said again
    assert on_disk(tmp_path) == keeper._budgets["ng"].state.used
    keeper.close()
    again = archive(tmp_path)
    assert again._budgets["ng"].state.used == on_disk(tmp_path)
    sizes = [again._budgets["ng"]._units.popleft().size for _ in kept]
    assert sum(sizes) == again._budgets["ng"].state.used


def test_words_that_would_push_out_their_own_part_are_not_left_alone(tmp_path):
    keeper = archive(tmp_path)
    keeper.part(uikit.record(1, "NG", size=8))
    keeper._budgets["ng"]._limit = on_disk(tmp_path) + 100
    keeper.message("desc", uikit.description(1, "long " * 50))
    assert on_disk(tmp_path) == keeper._budgets["ng"].state.used == 0


def test_a_disk_that_fills_in_mid_part_leaves_no_picture_that_nothing_counts(tmp_path, monkeypatch):
    keeper = archive(tmp_path, clock=uikit.Clock())
    real = Path.write_bytes

    def fail(path, data):
        if path.suffix == ".json":
            real(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    for seq in range(1, 4):
        keeper.part(uikit.record(seq, "NG", size=8))
        keeper._clock.now += 20
    assert on_disk(tmp_path) == keeper._budgets["ng"].state.used == 0
    monkeypatch.undo()
    keeper.part(uikit.record(4, "NG", size=8))
    monkeypatch.setattr(Path, "write_bytes", fail)
    keeper.message("desc", uikit.description(4))
    assert on_disk(tmp_path) == keeper._budgets["ng"].state.used > 0


def test_half_a_part_is_deleted_at_the_next_start_and_strangers_files_are_not(tmp_path):
    first = archive(tmp_path)
    for seq in (1, 2):
        first.part(uikit.record(seq, "NG", size=8))
    first.close()
    half, whole = entries(tmp_path, "ng")
    half.stem.with_name(f"{half.name}.json").unlink()  # kill -9 before the last file
    (half.folder / "notes.txt").write_text("mine")
    assert entries(tmp_path, "ng") == [whole], "who only reads deletes nothing"
    assert half.files()
    again = archive(tmp_path)
    assert half.files() == []
    assert (half.folder / "notes.txt").exists()
    assert again._budgets["ng"].state.used == on_disk(tmp_path) - len("mine")


def filled(tmp_path):
    keeper = archive(tmp_path / "archive", values={"every_ok": 1})
    for seq in range(1, 11):
        # Half of them as a camera delivers them (JPEG): anomalib reads nothing but PNG here.
        verdict = "NG" if seq % 5 == 0 else "OK"
        keeper.part(uikit.record(seq, verdict, jpeg=seq % 2 == 0, size=4))
    keeper.part(uikit.record(11, "ERROR", size=4))
    keeper.message("desc", uikit.description(5))
    return tmp_path / "archive"


def test_export_to_a_folder_with_a_csv(tmp_path):
    report = export(filled(tmp_path), tmp_path / "out")
    assert report.parts == 11
    with (tmp_path / "out" / "parts.csv").open() as stream:
        rows = {row["part_id"]: row for row in csv.DictReader(stream)}
    assert rows["part-00005"]["category"] == "pit"
    assert rows["part-00005"]["description"] == "A dark pit near the rim."
    assert (tmp_path / "out" / rows["part-00003"]["file"]).is_file()


def test_export_as_a_data_set_in_the_layout_of_mvtec(tmp_path):
    export(filled(tmp_path), tmp_path / "out", "mvtec")
    out = tmp_path / "out"
    counts = {str(p.relative_to(out)): len(list(p.glob("*.png"))) for p in out.glob("*/*")}
    assert counts == {
        "train/good": 7,
        "test/good": 1,
        "test/pit": 1,
        "test/defect": 1,
        "proposed_masks/pit": 1,
        "proposed_masks/defect": 1,
    }
    mask = cv2.imread(str(next((out / "proposed_masks/pit").glob("*.png"))), 0)
    ys, xs = np.nonzero(mask)
    assert mask.shape == (90, 120)
    assert abs(xs.mean() - 320 / 4) < 2
    assert abs(ys.mean() - 170 / 4) < 2


def test_the_data_set_is_read_as_one_when_its_masks_are_confirmed(tmp_path):
    folder = filled(tmp_path)
    lost = next(e for e in entries(folder, "ng") if b"part-00010" in e.read(".json"))
    next(lost.stem.parent.glob(f"{lost.stem.name}*.map.png")).unlink()
    export(folder, tmp_path / "out", "mvtec")
    (tmp_path / "out" / "proposed_masks").rename(tmp_path / "out" / "ground_truth")
    samples = load_dataset(tmp_path / "out").samples
    assert sorted(s.category for s in samples) == ["defect"] + ["normal"] * 8 + ["pit"]
    assert all(s.located for s in samples)
    pit, defect = (next(s for s in samples if s.category == c) for c in ("pit", "defect"))
    assert read_mask(pit, (90, 120)).any() and not read_mask(defect, (90, 120)).any()
    # anomalib pairs the sorted pictures with the sorted masks and wants the name in the mask's.
    bad, masks = (sorted((tmp_path / "out").glob(p)) for p in ("test/[!g]*/*", "ground_truth/*/*"))
    assert [m.stem.removesuffix("_mask") for m in masks] == [b.stem for b in bad]


def test_export_says_what_is_wrong(tmp_path):
    with pytest.raises(SourceError, match="no archived parts"):
        export(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="not empty"):
        export(filled(tmp_path), tmp_path / "full")


def test_the_picture_and_map_of_an_archived_part_can_be_had_again(tmp_path):
    keeper = archive(tmp_path)
    record = uikit.record(7, "NG")
    keeper.part(record)
    trigger_id = record.result.trigger_id
    assert keeper.image(trigger_id, "")[0] == "image/png"
    media, data = keeper.image(trigger_id, "map")
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), 0)
    y, x = np.unravel_index(grey.argmax(), grey.shape)
    assert media == "image/png"
    assert abs(x * 480 / grey.shape[1] - 320) < 4
    assert abs(y * 360 / grey.shape[0] - 170) < 4
    assert keeper.image("0000000000000099", "") is None
    assert keeper.image(trigger_id, "thumb") is None


def test_a_full_archive_costs_no_memory(tmp_path):
    index = ArchiveIndex(tmp_path, ("ok",))
    queue = Queue(index, "ok")

    def grow(numbers):
        for n in numbers:
            queue.append(Unit(f"ok/20260101/{n:016d}_{n:016x}", 1000))

    grow(range(2000))  # caches fill
    tracemalloc.start()
    grow(range(2000, 12_000))
    held, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000, "bytes held for 10,000 parts"
    assert len(queue) == 12_000
    assert index.find(f"{11_999:016x}").name == f"{11_999:016d}_{11_999:016x}"
    assert [queue.popleft().name[-4:] for _ in range(3)] == ["0000", "0001", "0002"]
    assert index.find(f"{1:016x}") is None
    assert list(tmp_path.iterdir()) == [], "nothing is left behind by a kill"


def test_an_archive_that_cannot_hold_its_index_goes_on(tmp_path):
    (tmp_path / "file").touch()  # where the folder should be
    events = uikit.Events()
    keeper = archive(tmp_path / "file", events)
    keeper.part(uikit.record(1, "NG", size=8))
    assert events.kinds() == ["archive_failed"]
    assert keeper.image(f"{1:016x}", "") is None


def test_parts_that_go_while_they_are_listed_are_left_out(tmp_path, monkeypatch):
    keeper = archive(tmp_path)
    keeper.part(uikit.record(1, "NG", size=8))
    day = next((tmp_path / "ng").iterdir())
    (day / "0000000000000009_dead.json").symlink_to(tmp_path / "nowhere")
    assert [e.trigger_id for e in entries(tmp_path, "ng")] == [f"{1:016x}"]
    assert archive(tmp_path).image(f"{1:016x}", "") is not None
