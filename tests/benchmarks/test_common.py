"""The harness: rounds interleave, ratios are paired, sections are replaced by name."""

import json

import pytest

from benchmarks.common import Case, Report, Timing, machine, measure, publish, ratio, table


def test_every_round_times_every_case_once_and_starts_with_another():
    order = []
    cases = [Case(name, lambda n=name: order.append(n)) for name in "abc"]
    found = measure(cases, rounds=3, warmup=1, min_ms=0)
    assert order[3:] == list("abc") + list("bca") + list("cab")
    assert [len(t.samples) for t in found.values()] == [3, 3, 3]


def test_a_sample_lasts_long_enough_to_be_timed_and_counts_items():
    calls = []
    found = measure([Case("a", lambda: calls.append(1), items=10)], rounds=2, min_ms=2.0)
    assert len(calls) > 100
    assert found["a"].median < 0.1


def test_the_ratio_is_that_of_the_rounds_not_of_the_medians():
    slow, fast = Timing("s", (10.0, 100.0, 30.0)), Timing("f", (5.0, 10.0, 10.0))
    assert ratio(slow, fast) == 3.0
    assert fast.best == 5.0
    assert slow.quantile(0.99) == 100.0


def test_a_section_is_replaced_by_name_and_the_rest_stays(tmp_path, monkeypatch):
    results = tmp_path / "R.md"
    results.write_text("# Speed\n\nby hand\n")
    monkeypatch.setattr("benchmarks.common.ROOT", tmp_path)
    for value in (1.0, 2.5):
        for name in ("one", "one.cost"):
            report = Report(name, f"Title {name}", [{"case": "x", "ms": value}], ["a note"])
            stored = publish(report, results, tmp_path / "raw")
    text = results.read_text()
    assert text.startswith("# Speed\n\nby hand\n")
    assert text.count("## Title one") == 2
    assert text.count("| x | 2.5 |") == 2
    assert "| x | 1 |" not in text
    kept = json.loads(stored.read_text())
    assert kept["rows"] == [{"case": "x", "ms": 2.5}]
    assert kept["machine"]["cores"] == machine()["cores"]


@pytest.mark.parametrize(
    ("value", "cell"), [(None, ""), (0.01234, "0.0123"), (1234.5, "1,234"), ("x", "x"), (7, "7")]
)
def test_cells_are_short(value, cell):
    assert table([{"a": value}]).splitlines()[-1] == f"| {cell} |"
