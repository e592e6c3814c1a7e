"""docs/promises.md is made from what the tests told: the last run of each counts."""

import promises

ROW = {"promise": "P4", "figure": "busy p99 1 ms", "test": "tests/station/test_x.py::test_y"}
SEEN = {"passed": True, "at": "2026-01-01 10:00", "commit": "abc", "load": "1.0 of 2 cores"}


def test_the_last_run_of_a_test_counts_and_a_failure_is_told():
    rows = [
        ROW | SEEN,
        ROW | SEEN | {"at": "2026-01-02 10:00", "passed": False, "figure": "busy p99 9 ms"},
    ]
    page = promises.table(rows)
    assert "**FAILED**: busy p99 9 ms" in page and "p99 1 ms" not in page
    assert "`test_x.py` test_y" in page and "abc, load 1.0 of 2 cores" in page


def test_a_promise_without_a_figure_says_so():
    page = promises.table([ROW | SEEN])
    assert page.count("no figure yet") == len(promises.PROMISES) - 1


def test_a_figure_is_kept_with_its_test(figure, monkeypatch, tmp_path):
    monkeypatch.setattr(promises, "KEPT", tmp_path / "build" / "kept.jsonl")
    promises.keep("a::b", [("P1", "3 kills")], passed=True)
    assert '"P1"' in promises.KEPT.read_text() and '"passed": true' in promises.KEPT.read_text()
    assert callable(figure)
