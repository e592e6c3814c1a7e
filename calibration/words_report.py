"""Are the words right? Descriptions of labelled validation parts, held against mask and label.

`python -m calibration.words_report --bundle nano --data SET... --out build/reports/words`

Per set: references and a conformal threshold from train normals as `station enroll` takes them,
every validation part through the engine and the describer. Reported: yes/no accuracy of the words
beside the detector's own, agreement of the place with the mask, kinds, contradictions, answers
that were no valid JSON (wrong in yes/no, though the template then speaks and repeats the verdict);
and a page with twenty parts beside their words. `--prefix` tells whether
the model looks at its embeddings: fed as trained, none, or those of another part.
"""

import argparse
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.coreset import reduce_memory
from calibration.datasets import Dataset, Sample, load_dataset, read_image, read_mask
from calibration.enroll import DEFAULT_MODE
from calibration.entry import run_command, write_json
from calibration.thresholds import conformal_threshold
from calibration.trust import carry, reference_trust
from engines.bundle import Bundle, load_bundle
from engines.consistency import contradiction
from engines.describer import DescribeRequest, DescriberSettings, Description, open_describer
from engines.detector import Answer, Detector, Memory
from engines.errors import EngineError, SourceError
from engines.facts import (
    EVERYWHERE,
    Area,
    half_peak_level,
    location_word,
    small_heat,
    touched_cells,
    usual_heat,
)
from engines.preprocess import Box, to_tiles
from engines.template import ANOMALY
from engines.text import TextEncoder

SHOTS, HELD, CORESET = 16, 40, 4
LEAST_PX = 20  # a mask with fewer pixels (MT's grey rims) says nothing about a place

# How a label is said where it is no noun; the recipe would name it so.
_KIND_WORDS = {"uneven": "uneven area"}


def kind_word(label: str) -> str:
    """The noun of a label."""
    return _KIND_WORDS.get(label, label)


@dataclass(frozen=True)
class Said:
    """One validation part: truth, request and words; `asked`: a model was to say them."""

    sample: Sample
    mask: NDArray[np.bool_]
    request: DescribeRequest
    words: Description
    asked: bool = True

    @property
    def yes_no_right(self) -> bool:
        """Whether the words call the part what it is. No answer of the model's own is wrong."""
        spoken = self.words.source == "llm" or not self.asked
        return spoken and self.words.defective != self.sample.normal

    @property
    def place_right(self) -> bool | None:
        """Whether the named cell holds some of the defect; None where there is nothing to find."""
        if not self.words.defective or self.mask.sum() < LEAST_PX:
            return None
        if self.words.location == EVERYWHERE:
            return location_word(self.mask) == EVERYWHERE or bool(self.mask.mean() > 0.2)
        return self.words.location in {*touched_cells(self.mask), location_word(self.mask)}


class Inspector:
    """Engine, memory and threshold of one product, made from good parts (BGR u8)."""

    def __init__(
        self,
        noun: str,
        kinds: Sequence[str],
        good: Sequence[NDArray[np.uint8]],
        bundle: Bundle,
        mode: str = DEFAULT_MODE,
    ) -> None:
        self.noun, self.kinds = noun, tuple(kinds)
        phrases = [f"{{}} with a {kind}" for kind in kinds]
        self.anchors = TextEncoder.open(bundle).anchors(noun, phrases)
        self.detector = Detector.open(bundle, mode, threads=1)  # type: ignore[arg-type]
        self.detector.bind(None, self.anchors[None])
        shown = [self.run(image) for image in good[:SHOTS]]
        tokens = [a.tokens for a in shown]
        taps = [np.concatenate([t[i] for t in tokens])[None] for i in range(3)]
        memory = Memory((taps[0], taps[1], taps[2]))
        if mode == "bank":
            memory, _ = reduce_memory(memory, CORESET)
        trusted = carry(self.anchors, reference_trust(np.concatenate([a.p for a in shown])))
        self.detector.bind(memory, trusted[None])
        held = [self.run(image) for image in good[SHOTS:]]
        self.threshold = conformal_threshold([float(a.score[0]) for a in held]).value
        self.usual = usual_heat([small_heat(a.map[0]) for a in held])

    def run(self, image: NDArray[np.uint8]) -> Answer:
        """The engine's answer for a whole picture."""
        return self.detector.run(to_tiles(image, (Box(0, 0, image.shape[1], image.shape[0]),)))

    def request(self, part_id: str, image: NDArray[np.uint8]) -> DescribeRequest:
        """The describer's request for a part, with the detector's own verdict."""
        answer = self.run(image)
        high, wide = image.shape[:2]
        heat, score = np.asarray(answer.map[0], np.float32), float(answer.score[0])
        scale = min(1.0, 240 / max(high, wide))
        size = (max(1, round(wide * scale)), max(1, round(high * scale)))
        return DescribeRequest(
            part_id=part_id,
            noun=self.noun,
            verdict="OK" if score <= self.threshold else "NG",
            score=score,
            threshold=self.threshold,
            map=heat,
            area=Area(0, 0, wide, high),
            level=half_peak_level(heat),
            crop=np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8),
            cls=np.asarray(answer.cls[0]),
            anchors=self.anchors,
            f_out=np.asarray(answer.f_out[0]),
            categories=self.kinds,
            usual=self.usual,
        )


def mean(values: Sequence[bool | None]) -> float | None:
    """Share of True among what is not None; None when nothing is."""
    known = [v for v in values if v is not None]
    return round(float(np.mean(known)), 4) if known else None


def figures(said: Sequence[Said], threshold: float) -> dict[str, Any]:
    """The figures of one set."""
    bad = [s for s in said if not s.sample.normal]
    found = [s for s in bad if s.words.defective]
    return {
        "parts": len(said),
        "threshold": round(threshold, 4),
        "yes_no_words": mean([s.yes_no_right for s in said]),
        "yes_no_detector": mean([s.request.defective != s.sample.normal for s in said]),
        "place": mean([s.place_right for s in bad]),
        "place_parts": sum(s.place_right is not None for s in bad),
        "kind": mean([s.words.category == kind_word(s.sample.category) for s in found]),
        "kind_said": mean([s.words.category != ANOMALY for s in found]),
        "kind_of_said": mean([_kind_right(s) for s in found]),
        "kind_balanced": _balanced(found),
        "by_model": mean([s.words.source == "llm" for s in said]),
        "invalid": sum("whole answer" in (s.words.note or "") for s in said),
        "contradictions": sum(s.words.contradiction is not None for s in said),
        "tokens_per_s": round(float(np.median([s.words.tokens_per_s for s in said])), 1),
    }


def _balanced(found: Sequence[Said]) -> float | None:
    """Share of right kinds, each kind weighing the same."""
    kinds = {s.sample.category for s in found}
    shares = [
        np.mean([s.words.category == kind_word(kind) for s in found if s.sample.category == kind])
        for kind in kinds
    ]
    return round(float(np.mean(shares)), 4) if shares else None


def inspector_of(dataset: Dataset, bundle: Bundle, mode: str) -> Inspector:
    """The inspector of a labelled set, from its good train parts; SourceError: too few of them."""
    normals = dataset.of("train", normal=True)
    if len(normals) <= SHOTS:
        raise SourceError(
            f"{dataset.name} has {len(normals)} good parts in its train split, {SHOTS + 1} are "
            "needed for references and a threshold: add some, or leave the set out"
        )
    step = max(1, len(normals) // (SHOTS + HELD))
    good = [read_image(s) for s in normals[::step][: SHOTS + HELD]]
    kinds = [kind_word(k) for k in sorted({s.category for s in dataset.samples if not s.normal})]
    return Inspector(dataset.noun, kinds, good, bundle, mode)


def speak(
    requests: Sequence[DescribeRequest], graph: Path, backend: str, prefix: str
) -> list[Description]:
    """Descriptions of requests, held against the map. `prefix` of `graph`: fed, none, shuffled."""
    if prefix == "shuffled":
        bad = [i for i, r in enumerate(requests) if r.defective]
        other = dict(zip(bad, bad[len(bad) // 2 :] + bad[: len(bad) // 2], strict=True))
        shown = [
            replace(r, cls=requests[other.get(i, i)].cls, f_out=requests[other.get(i, i)].f_out)
            for i, r in enumerate(requests)
        ]
    else:
        shown = list(requests)
    path = None if prefix == "none" else str(graph)
    settings = DescriberSettings(prefix=path, backend=backend, batch=4, deadline_s=10_000)  # type: ignore[arg-type]
    describer = open_describer(settings)
    words = describer.describe_many(shown)
    describer.close()
    return [
        w.model_copy(update={"contradiction": contradiction(w, r.facts())})
        for w, r in zip(words, requests, strict=True)
    ]


def describe_set(
    root: Path, args: argparse.Namespace, bundle: Bundle
) -> tuple[str, list[Said], float]:
    """Validation parts of one set in words: at most `limit`, half of them good ones."""
    dataset = load_dataset(root)
    inspector = inspector_of(dataset, bundle, args.mode)
    bad, good = dataset.of("val", normal=False), dataset.of("val", normal=True)
    half = args.limit // 2
    samples = [*_spread(bad, half), *_spread(good, args.limit - half)]
    if not samples:
        raise SourceError(f"{dataset.name} has no picture in its split val: leave the set out")
    requests = [inspector.request(f"{dataset.name}/{s.image.name}", read_image(s)) for s in samples]
    said = []
    graph = args.prefix_graph or bundle.file("prefix.onnx")
    words = speak(requests, graph, args.backend, args.prefix)
    if args.backend == "auto" and words and all(one.source != "llm" for one in words):
        raise EngineError("no language model here: say --backend template, or install one")
    for sample, request, spoken in zip(samples, requests, words, strict=True):
        shape = read_image(sample).shape[:2]
        mask = read_mask(sample, shape) if sample.located else np.zeros(shape, np.bool_)
        said.append(Said(sample, mask, request, spoken, args.backend != "template"))
    return dataset.name, said, inspector.threshold


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    step = max(1.0, len(samples) / max(1, count))
    return [samples[int(i * step)] for i in range(min(count, len(samples)))]


_STYLE = """<meta charset=utf-8><title>What is said of validation parts</title><style>
body{font:15px/1.4 sans-serif;margin:24px;color:#222;background:#fff}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(620px,1fr));gap:20px}
figure{margin:0;padding:12px;border:1px solid #ccc;border-radius:6px}
img{width:100%;display:block}figcaption{margin-top:8px}small{color:#555}
.right{color:#186a3b}.wrong{color:#a93226;font-weight:600}</style>
"""


def page(said: Sequence[Said], out: Path) -> None:
    """index.html with twenty parts beside their words: twelve right ones, eight wrong ones."""
    wrong = [s for s in said if s.place_right is False or not s.yes_no_right]
    wrong += [s for s in said if s not in wrong and _kind_right(s) is False]
    right = [s for s in said if s not in wrong and not s.sample.normal]
    bad = _spread_said(wrong, 8)
    cards = []
    for i, s in enumerate([*_spread_said(right, 20 - len(bad)), *bad]):
        name = f"{i:02d}.jpg"
        cv2.imwrite(str(out / name), _picture(s))
        marks = {
            "verdict": s.yes_no_right,
            "place": s.place_right,
            "kind": _kind_right(s),
        }
        told = ", ".join(
            f"<span class={_mark(v)}>{k} {_mark(v)}</span>" for k, v in marks.items()
        ).replace("<span class=->", "<span>")
        place = location_word(s.mask) if s.mask.any() else "no place"
        truth = "good part" if s.sample.normal else f"{kind_word(s.sample.category)}, {place}"
        words = html.escape(s.words.sentence)
        cards.append(
            f"<figure><img src={name} alt='picture, heat, label'><figcaption>{words}<br>"
            f"<small>label: {html.escape(truth)}; {told}</small></figcaption></figure>"
        )
    head = "<h1>What is said of validation parts</h1><p>Picture, heat of the map, label.</p><main>"
    (out / "index.html").write_text(_STYLE + head + "\n".join(cards), encoding="utf-8")


def _mark(right: bool | None) -> str:
    return "-" if right is None else "right" if right else "wrong"


def _kind_right(said: Said) -> bool | None:
    """Whether the kind is right; None for good parts and where only "anomaly" is said."""
    if said.sample.normal or not said.words.defective or said.words.category == ANOMALY:
        return None
    return said.words.category == kind_word(said.sample.category)


def _spread_said(said: Sequence[Said], count: int) -> list[Said]:
    step = max(1.0, len(said) / max(1, count))
    return [said[int(i * step)] for i in range(min(count, len(said)))]


def _picture(said: Said) -> NDArray[np.uint8]:
    """Picture, heat over it, and mask, side by side at 240 px."""
    image = cv2.resize(read_image(said.sample), (240, 240), interpolation=cv2.INTER_AREA)
    scaled = said.request.map / max(float(said.request.map.max()), 1e-6)
    heat = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    over = cv2.addWeighted(image, 0.5, cv2.resize(heat, (240, 240)), 0.5, 0)
    mask = cv2.resize(said.mask.astype(np.uint8) * 255, (240, 240))
    return np.asarray(np.hstack([image, over, cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR)]), np.uint8)


def main() -> None:
    """All sets, one report."""
    parser = argparse.ArgumentParser(prog="python -m calibration.words_report", description=__doc__)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("build/reports/words"))
    parser.add_argument("--mode", default=DEFAULT_MODE)
    parser.add_argument("--prefix", choices=["fed", "none", "shuffled"], default="fed")
    parser.add_argument("--backend", choices=["auto", "template"], default="auto")
    parser.add_argument("--prefix-graph", type=Path, help="another prefix.onnx than the bundle's")
    parser.add_argument("--limit", type=int, default=10_000, help="parts a set")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(args.bundle)
    report, everything = {}, []
    for root in args.data:
        name, said, threshold = describe_set(root, args, bundle)
        report[name] = figures(said, threshold)
        everything += said
        print(name, json.dumps(report[name]), flush=True)
    write_json(args.out / f"words-{args.prefix}.json", report)
    page(everything, args.out)
    print(f"{args.out}/index.html")


if __name__ == "__main__":
    run_command(main)
