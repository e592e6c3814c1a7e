"""`station replay --verify`: are verdicts and scores the recorded ones, to the last bit?"""

from collections import Counter
from dataclasses import dataclass

from station.parts import PartRecord


@dataclass(frozen=True)
class Difference:
    """One part whose replay is not what was recorded."""

    name: str
    field: str
    recorded: str
    replayed: str


class Verifier:
    """Collects parts that carry a recorded verdict in their frame's tags.

    `what_if`: another threshold was asked for, so thresholds differ by intent and the changed
    verdicts are the answer.
    """

    def __init__(self, *, what_if: bool = False) -> None:
        self.compared = 0
        self.differences: list[Difference] = []
        self.changes: Counter[str] = Counter()
        self._what_if = what_if
        self._parts: set[str] = set()

    @property
    def differing(self) -> int:
        """How many parts differ in any field."""
        return len(self._parts)

    def part(self, record: PartRecord) -> None:
        """Compare one part; parts without a recorded verdict are not counted."""
        tags = record.frame.tags if record.frame else {}
        if record.frame is None or "verdict" not in tags:
            return
        if tags.get("reason") in ("deadline", "queue_full", "restart"):
            return  # timing, not pixels, decided these: a replay has no clock to repeat it
        self.compared += 1
        result = record.result
        if tags["verdict"] != result.verdict:
            self.changes[f"{tags['verdict']}->{result.verdict}"] += 1
        now = {"verdict": str(result.verdict), "reason": str(result.reason)}
        now["score"] = "" if result.score is None else repr(result.score)
        if not self._what_if:
            now["threshold"] = "" if result.threshold is None else repr(result.threshold)
        for field, value in now.items():
            if field in tags and tags[field] not in (value, value or "None"):
                self.differences.append(Difference(record.frame.name, field, tags[field], value))
                self._parts.add(result.trigger_id)

    def print_table(self, most: int = 40) -> None:
        """The differences, to stdout."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title="replay differs from the recording", title_justify="left")
        for column in ("part", "field", "recorded", "replayed"):
            table.add_column(column)
        for found in self.differences[:most]:
            table.add_row(found.name, found.field, found.recorded, found.replayed)
        Console().print(table)
