"""`python -m calibration.report JSON...`: docs/evaluation.md from what `evaluate` measured.

`--unseen JSON...` are runs with weights that never saw the judged set, one file per set.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.datasets import set_name
from calibration.entry import read_json, run_command
from engines.errors import SourceError

# Pixel-AUC of the paper's Tables I and II at 1, 2, 4 shots; MT's column is inferred there.
PAPER = {"mt": (88.8, 90.8, 92.6), "bsdata": (85.6, 88.5, 89.8), "cfd": (94.8, 96.3, 97.4)}
FIGURES = {
    "pixel": "Pixel-AUC", "native": "native size", "image": "Image-AUC", "pro": "AUPRO",
    "false_reject": "false rejects", "caught": "caught", "said": "said right",
}  # fmt: skip
HEAD = """# Evaluation

Written by `python -m calibration.report`; do not edit. All figures in percent, mean over runs
(sample deviation in brackets), Pixel-AUC at 240 px over all pixels of all judged pictures, through
the exported engines. A dash is undefined; the reason stands under the table. "Said right": share of
pictures whose description's field `defective` is true to the label, as the template says it (it
repeats the verdict at the recipe's threshold). Native size: the first run alone.
"""


def number(entry: dict[str, Any], name: str) -> str:
    """Mean (deviation) of one figure."""
    mean = entry["mean"].get(name)
    if mean is None:
        return "-"
    spread = entry["deviation"].get(name)
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ({spread:.1f})"


def ours_table(name: str, entry: dict[str, Any]) -> list[str]:
    """Our rows beside the paper's."""
    lines = [
        "| shots | Pixel-AUC | native size | Image-AUC | AUPRO | false rejects | caught "
        "| said right | paper Pixel-AUC |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    paper = dict(zip(("1", "2", "4"), PAPER.get(name, ()), strict=False))
    for shots, found in entry["ours"].items():
        names = ("pixel", "native", "image", "pro", "false_reject", "caught", "said")
        cells = [number(found, n) for n in names]
        lines.append(f"| {shots} | " + " | ".join(cells) + f" | {paper.get(shots, '-')} |")
    return lines


def undefined(found: dict[str, dict[str, Any]], of: str) -> list[str]:
    """One line for every figure that is a dash, with its reason; `of`: what the rows are."""
    places: dict[tuple[str, str], list[str]] = {}
    for row, entry in found.items():
        for name, why in entry.get("reasons", {}).items():
            places.setdefault((FIGURES.get(name, name), why), []).append(row)
    lines = [f"- {name} ({', '.join(at)} {of}): {why}." for (name, why), at in places.items()]
    return ["", "Undefined:", "", *lines] if lines else []


def baseline_table(entry: dict[str, Any]) -> list[str]:
    """Pixel / Image of ours and every baseline at every number of shots."""
    counts = [c for c in entry["ours"] if c != "0"]
    lines = [
        "| method | " + " | ".join(f"{c}-shot Pixel / Image" for c in counts) + " |",
        "| --- |" + " --- |" * len(counts),
    ]
    table = {"**ours**": entry["ours"], **entry.get("baselines", {})}
    for method, found in table.items():
        if not all(c in found for c in counts):
            continue
        cells = [f"{number(found[c], 'pixel')} / {number(found[c], 'image')}" for c in counts]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def ablation_table(entry: dict[str, Any]) -> list[str]:
    """Pixel and Image of every ablation."""
    lines = ["| variant (1 shot) | Pixel-AUC | Image-AUC |", "| --- | --- | --- |"]
    for name, found in entry["ablations"].items():
        cells = ["-" if found[k] is None else f"{found[k]:.1f}" for k in ("pixel", "image")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def section(name: str, entry: dict[str, Any], level: str = "##") -> list[str]:
    """Everything of one set."""
    lines = [
        f"{level} {name} ({entry['noun']})",
        "",
        f"{entry['judged']} pictures judged, {entry['ms']:.0f} ms per picture (one thread, machine "
        f"shared), pieces against the fused detector: {entry['fused_difference']:.1e}.",
        "",
        *ours_table(name, entry),
        *undefined(entry["ours"], "shots"),
        "",
    ]
    if entry.get("baselines"):
        runs = entry.get("baseline_runs")
        said = f" (baselines: the first {runs} runs)" if runs else ""
        lines += [f"On the same stem features and shots{said}:", "", *baseline_table(entry), ""]
    if entry.get("ablations"):
        lines += ["Ablations with the same weights:", "", *ablation_table(entry)]
        lines += [*undefined(entry["ablations"], "at one shot"), ""]
    return lines


def shots_used(report: dict[str, Any]) -> list[str]:
    """File names of the shots of every run."""
    lines = ["## Shots", ""]
    for name, entry in report["sets"].items():
        most = max(entry["ours"], key=int)
        for index, row in enumerate(entry["ours"][most]["runs"]):
            lines.append(f"- {name}, run {index}: " + ", ".join(f"`{s}`" for s in row["shots"]))
    return [*lines, ""]


def page(seen: Sequence[dict[str, Any]], unseen: Sequence[dict[str, Any]], notes: str) -> str:
    """The whole page."""
    lines = [HEAD]
    for report in seen:
        lines += [f"Weights: {report['trained']}. Split: {report['split']}.", ""]
        for name, entry in report["sets"].items():
            lines += section(name, entry)
    if unseen:
        lines += ["# Parts of a kind never seen in training", ""]
        for report in unseen:
            lines += [f"Weights: {report['trained']}.", ""]
            for name, entry in report["sets"].items():
                lines += section(name, entry)
    if notes:
        lines += [notes.strip(), ""]
    for report in seen:
        lines += shots_used(report)
    return "\n".join(lines)


def merge_baselines(groups: list[list[dict[str, Any]]], source: dict[str, Any]) -> None:
    """Baselines depend on stem, shots and pictures alone: one run serves all weights."""
    for report in (r for group in groups for r in group):
        for name, entry in report["sets"].items():
            if source["sets"].get(name, {}).get("baselines") and not entry.get("baselines"):
                entry["baselines"] = source["sets"][name]["baselines"]
                entry["baseline_runs"] = source["runs"]


def promise_table(found: dict[str, Any]) -> str:
    """Stated against measured false-reject rates."""
    lines = [
        "## Does the stated false-reject rate hold?",
        "",
        "| set | enrolments inside their 95 % interval | held out | fresh | mean rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in found.items():
        each = entry["each"]
        mean = 100 * sum(e["rate"] for e in each) / len(each)
        lines.append(
            f"| {set_name(Path(name))} | {entry['inside']} of {entry['of']} | "
            f"{each[0]['held_out']} | {each[0]['fresh']} | {mean:.1f} % |"
        )
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    """A report of calibration.evaluate; SourceError when the file is none."""
    body = read_json(path)
    if not isinstance(body, dict) or not isinstance(body.get("sets"), dict):
        raise SourceError(f"{path} is no report of calibration.evaluate: give one")
    return body


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m calibration.report", description=__doc__)
    parser.add_argument("seen", type=Path, nargs="+")
    parser.add_argument("--unseen", type=Path, nargs="*", default=[])
    parser.add_argument("--baselines", type=Path, help="a run of evaluate --baselines to merge")
    parser.add_argument("--promise", type=Path, help="JSON of calibration.promise")
    parser.add_argument("--notes", type=Path, help="Markdown to append: what was tried, limits")
    parser.add_argument("--out", type=Path, default=Path("docs/evaluation.md"))
    args = parser.parse_args(argv)
    read = [[_read(p) for p in group] for group in (args.seen, args.unseen)]
    if args.baselines:
        merge_baselines(read, _read(args.baselines))
    notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
    if args.promise:
        notes = promise_table(read_json(args.promise)) + "\n\n" + notes
    args.out.write_text(page(read[0], read[1], notes), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
