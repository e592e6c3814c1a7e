"""Compare a replay with its recording: are verdicts and scores the same, to the last bit?"""

from collections import Counter
from dataclasses import dataclass

from station.parts import PartRecord
from station.schema import Result

_TIMING = ("deadline", "queue_full", "restart")
_VERDICT, _SCORE, _THRESHOLD = "verdict", "score", "threshold"


@dataclass(frozen=True)
class Difference:
    """One part that is not what was recorded: (recorded, replayed) by name of the field."""

    part: str
    fields: dict[str, tuple[str, str]]


class Verifier:
    """Listener of a replay; collects parts whose frames carry a recorded verdict in their tags.

    `what_if`: something was changed by intent (threshold, recipe), so only another verdict or
    reason is a difference; scores and limits are told beside it.
    """

    def __init__(self, *, what_if: bool = False) -> None:
        self.compared = 0
        self.skipped = 0
        self.differences: list[Difference] = []
        self.changes: Counter[str] = Counter()
        self.other: dict[str, str] = {}  # what judged then and now, where it is not the same
        self._what_if = what_if

    @property
    def differing(self) -> int:
        """How many parts differ in any field."""
        return len(self.differences)

    def part(self, record: PartRecord) -> None:
        """Compare one part; parts without a recorded verdict are not counted."""
        tags = record.frame.tags if record.frame else {}
        if record.frame is None or _VERDICT not in tags:
            return
        if tags.get("reason") in _TIMING:
            self.skipped += 1  # not pixels but the clock decided: a replay cannot repeat it
            return
        self.compared += 1
        result = record.result
        self._compare_judges(tags, result)
        now = {
            _VERDICT: str(result.verdict),
            "reason": str(result.reason),
            _SCORE: _number(result.score),
            _THRESHOLD: _number(result.threshold),
        }
        pairs = {field: (tags.get(field, ""), value) for field, value in now.items()}
        differ = {field for field, (then, value) in pairs.items() if then != value}
        if _VERDICT in differ:
            self.changes[f"{tags[_VERDICT]} -> {result.verdict}"] += 1
        if differ - ({_SCORE, _THRESHOLD} if self._what_if else set()):
            self.differences.append(Difference(record.frame.name, pairs))

    def _compare_judges(self, tags: dict[str, str], result: Result) -> None:
        pairs = {f"recipe {result.recipe or '(none)'}": (tags.get("recipe_sha"), result.recipe_sha)}
        pairs["bundle"] = (tags.get("bundle_sha"), result.bundle_sha)
        for what, (then, now) in pairs.items():
            if then is not None and then != now:
                self.other[what] = f"{then[:8] or '-'} -> {now[:8] or '-'}"

    def tell(self, *, verify: bool, most: int = 40) -> None:
        """To stdout: one sentence that counts parts, then a row for each that differs."""
        changes = ", ".join(f"{count} {change}" for change, count in sorted(self.changes.items()))
        what = "differ" if verify else "would get another verdict"
        verb = "verified" if verify else "compared with the recording"
        print(
            f"{verb}: {_parts(self.compared)}, {self.differing} {what}"
            + (f" ({changes})" if changes else "")
            + (f"; {_parts(self.skipped)} judged by the clock left out" if self.skipped else "")
        )
        for what, change in self.other.items():
            print(f"not as recorded: {what} {change}")
        if self.differences:
            self._table(most)

    def _table(self, most: int) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title="recorded -> replayed", title_justify="left")
        table.add_column("part", overflow="fold")
        for column in (_VERDICT, "reason", _SCORE, _THRESHOLD):
            table.add_column(column)
        exact = not self._what_if
        for found in self.differences[:most]:
            cells = [
                _change(*found.fields[name], exact=exact)
                for name in (_VERDICT, "reason", _SCORE, _THRESHOLD)
            ]
            table.add_row(found.part, *cells)
        if self.differing > most:
            table.caption = f"and {_parts(self.differing - most)} more"
        Console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _parts(count: int) -> str:
    return "1 part" if count == 1 else f"{count} parts"


def _change(then: str, now: str, *, exact: bool) -> str:
    """ "a -> b", or only "a" when nothing changed; numbers short unless the last digit counts."""
    short = (then, now) if exact else (_brief(then), _brief(now))
    return short[0] if then == now else f"{short[0] or '-'} -> {short[1] or '-'}"


def _brief(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
