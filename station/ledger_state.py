"""What the ledger decides: which verdict is written for a part, and what is late. Pure functions.

The fail-safe core beside `verdict.py`: no files, no threads, no clocks of its own.
"""

from dataclasses import dataclass

from station.schema import (
    Desc,
    DescDraft,
    Event,
    EventDraft,
    Opening,
    Reason,
    Result,
    ResultDraft,
    Verdict,
)

JUDGED = frozenset({Verdict.OK, Verdict.NG})


@dataclass(frozen=True)
class Identity:
    """Whose ledger this is; stands in every body."""

    line: str
    station: str
    epoch: str


@dataclass(frozen=True)
class OpenPart:
    """An accepted part without a verdict."""

    opening: Opening
    part_id: str
    attempt: int


@dataclass(frozen=True)
class Moment:
    """One reading of both clocks: monotonic nanoseconds decide, wall microseconds label."""

    mono_ns: int
    wall_us: int


def is_late(opening: Opening, mono_ns: int) -> bool:
    """True when the deadline has passed at this monotonic time."""
    return mono_ns > opening.deadline_ns


def due_draft(draft: ResultDraft, late: bool) -> ResultDraft:
    """The verdict that may still be written: an answer after the deadline is no verdict.

    Its figures stay, for the record; OK and NG become UNDECIDED/deadline.
    """
    if not late or draft.verdict not in JUDGED:
        return draft
    return draft.model_copy(update={"verdict": Verdict.UNDECIDED, "reason": Reason.DEADLINE})


def build_result(
    who: Identity, part: OpenPart, draft: ResultDraft, *, seq: int, now: Moment, handed_ns: int
) -> Result:
    """The body of a part's verdict as of `now`; `handed_ns` = when the ledger was given it."""
    opening = part.opening
    late = is_late(opening, now.mono_ns)
    due = due_draft(draft, late)
    waited_us = max(0, (now.mono_ns - handed_ns) // 1000)
    return Result(
        line=who.line,
        station=who.station,
        epoch=who.epoch,
        seq=seq,
        trigger_id=opening.trigger_id,
        part_id=part.part_id,
        attempt=part.attempt,
        verdict=due.verdict,
        reason=due.reason,
        late=late,
        simulated=opening.simulated,
        score=due.score,
        threshold=opening.threshold if due.threshold is None else due.threshold,
        regions=due.regions,
        region_count=due.region_count,
        recipe=opening.recipe,
        recipe_sha=opening.recipe_sha,
        bundle_sha=opening.bundle_sha,
        config_sha=opening.config_sha,
        t_trigger_us=opening.t_trigger_us,
        t_capture_us=due.t_capture_us,
        t_done_us=now.wall_us,
        timings_us=due.timings_us.model_copy(update={"commit": waited_us}),
        image_ref=due.image_ref,
        desc_state=due.desc_state,
    )


def restart_draft(trigger_id: str) -> ResultDraft:
    """The verdict of a part whose station, or ledger, died under it."""
    return ResultDraft(trigger_id=trigger_id, verdict=Verdict.ERROR, reason=Reason.RESTART)


def build_entry(
    who: Identity, draft: DescDraft | EventDraft, *, seq: int, now: Moment
) -> Desc | Event:
    """The body of a description or an event."""
    kind = Desc if isinstance(draft, DescDraft) else Event
    return kind(
        **draft.model_dump(),
        line=who.line,
        station=who.station,
        epoch=who.epoch,
        seq=seq,
        t_us=now.wall_us,
    )
