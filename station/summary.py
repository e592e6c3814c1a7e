"""The table at the end of a run over a source that ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from station.options import Outcome

_CAUSES = {
    "stale": "frames too old",
    "superseded": "frames passed over for a newer one",
    "refused": "frames without a part",
    "overrun": "frames nobody had time for",
    "repeats": "frames repeated",
    "damaged": "frames damaged",
    "restarts": "restarts",
}
_COLOURS = {"OK": "green", "NG": "red", "UNDECIDED": "yellow", "ERROR": "magenta"}


def percentile_ms(values_us: Sequence[int], share: float) -> str:
    """Nearest-rank percentile in milliseconds, "-" without values."""
    if not values_us:
        return "-"
    ranked = sorted(values_us)
    return f"{ranked[min(len(ranked) - 1, int(share * len(ranked)))] / 1000:.1f} ms"


def print_summary(outcome: "Outcome", what: str) -> None:
    """To stdout: parts, verdicts with their reasons, latency, rate, words, what was lost."""
    from rich.console import Console
    from rich.table import Table

    totals = outcome.totals
    table = Table(title=what, show_header=False, title_justify="left")
    table.add_column(justify="right")
    table.add_column()
    table.add_row("parts", str(totals.parts))
    for verdict, colour in _COLOURS.items():
        count = totals.verdicts.get(verdict, 0)
        style = colour if count else "dim"
        table.add_row(verdict, f"[{style}]{count}[/]")
    for reason, count in sorted(totals.reasons.items()):
        table.add_row(f"reason {reason}", str(count), style="dim")
    if totals.late:
        table.add_row("late", str(totals.late))
    table.add_row(
        "trigger to verdict",
        f"p50 {percentile_ms(totals.latencies_us, 0.5)}, "
        f"p99 {percentile_ms(totals.latencies_us, 0.99)}",
    )
    table.add_row("engine call", f"p50 {percentile_ms(totals.infer_us, 0.5)}")
    table.add_row("frames/s", f"{totals.fps:.1f}")
    table.add_row("descriptions", f"{outcome.described} written, {outcome.not_described} dropped")
    for lane, losses in outcome.losses.items():
        if told := ", ".join(
            f"{count} {_CAUSES[cause]}" for cause, count in losses.items() if count
        ):
            table.add_row(f"camera {lane}".strip(), told)
    Console().print(table)
