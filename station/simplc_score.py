"""The score of a simulated line: the PLC's log against the station's ledger."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from engines.errors import SourceError
from station.schema import Result
from station.simplc_drive import Answer, State
from station.simplc_script import Part


class PlcLog:
    """JSON lines, one per answer, flushed as they come: a killed PLC keeps what it saw."""

    def __init__(self, path: Path | None) -> None:
        self.rows: list[dict] = []
        self._file: TextIO | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("w", encoding="utf-8")
            except OSError as error:
                raise SourceError(f"the PLC log {path} cannot be written: {error}") from None

    def add(self, part: Part, part_id: str, answer: Answer, lag_ms: float) -> None:
        """One answer to one part."""
        row = {
            "n": part.number,
            "part_id": part_id,
            "trigger_id": answer.trigger_id,
            "fault": part.fault,
            "state": str(answer.state),
            "passed": answer.passed,
            "verdict": answer.verdict,
            "reason": answer.reason,
            "accepted": answer.accepted,
            "epoch": answer.epoch,
            "seq": answer.seq,
            "ms": round(answer.ms, 3),
            "lag_ms": round(lag_ms, 3),
        }
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


@dataclass
class Score:
    """What a run showed. The lists name trigger ids; all of them must be empty."""

    states: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    passed: int = 0
    milliseconds: list[float] = field(default_factory=list)
    checked: int | None = None  # how many rows were compared with the ledger; None: not asked
    false_ok: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def lies(self) -> int:
        """How often a promise was broken; 0 is the only good value."""
        lists = (self.false_ok, self.wrong, self.doubled, self.lost, self.disordered, self.broken)
        return sum(len(found) for found in lists)

    @property
    def unanswered(self) -> int:
        """Parts rejected for want of an answer, faults made on purpose left out."""
        return self.states[State.MISSING] + self.states[State.MISSED] + self.states[State.REFUSED]


def tally(rows: Iterable[dict]) -> Score:
    """Count what the PLC saw; answers to faults must be rejects unless their own part was OK."""
    score = Score()
    previous = ("", 0)
    seen: set[str] = set()
    for row in rows:
        if row["fault"] is None:
            score.states[row["state"]] += 1
        if row["verdict"]:
            score.verdicts[row["verdict"]] += 1
            score.milliseconds.append(row["ms"])
        if row["state"] == State.REFUSED:
            score.refusals[row["reason"]] += 1
        score.passed += row["passed"]
        if row["passed"] and row["verdict"] != "OK":
            score.false_ok.append(row["trigger_id"])
        if row["verdict"] and row["trigger_id"] in seen:
            score.broken.append(row["trigger_id"])  # a second verdict for one trigger
        if row["verdict"]:
            seen.add(row["trigger_id"])
            if row["epoch"] == previous[0] and row["seq"] <= previous[1]:
                score.disordered.append(row["trigger_id"])
            previous = (row["epoch"], row["seq"])
    return score


def reconcile(score: Score, rows: Iterable[dict], ledger: Iterable[bytes]) -> None:
    """Compare the PLC's rows with the ledger's: same verdict, once, and nothing accepted lost."""
    held: dict[str, list[Result]] = {}
    for data in ledger:
        result = Result.model_validate_json(data)
        held.setdefault(result.trigger_id, []).append(result)
    score.checked = 0
    for row in rows:
        found = held.get(row["trigger_id"], [])
        if len(found) > 1:
            score.doubled.append(row["trigger_id"])
        if row["accepted"] and not found:
            score.lost.append(row["trigger_id"])
        if not row["verdict"]:
            continue
        score.checked += 1
        true = found[0] if found else None
        if row["passed"] and not (true is not None and true.accept):
            score.false_ok.append(row["trigger_id"])
        if true is None or (str(true.verdict) != row["verdict"] and row["reason"] not in _MASKED):
            score.wrong.append(row["trigger_id"])


# A gateway shows an OK that came late or from recorded pictures as UNDECIDED with this reason.
_MASKED = frozenset({"late", "simulated"})
