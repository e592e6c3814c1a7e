"""Whether words are right: an answer that the model did not give is wrong, whatever stands in."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from calibration.datasets import Dataset, Sample
from calibration.words_report import Said, figures, inspector_of
from engines.describer import Description
from engines.errors import SourceError


def said(normal, defective, source, asked=True):
    sample = Sample(Path("a.png"), None, "normal" if normal else "crack", normal)
    words = Description(
        part_id="a", defective=defective, category="crack" if defective else "none",
        count=int(defective), location="center" if defective else "none", shape="line",
        size_mm_or_px="3 px", colour="grey", confidence="high", sentence="So.", source=source,
        model="m", note=None if source == "llm" else "m gave no whole answer within 128 tokens",
    )  # fmt: skip
    request = SimpleNamespace(defective=defective)
    return Said(sample, np.zeros((4, 4), bool), request, words, asked)


def test_an_answer_that_cannot_be_parsed_is_wrong_though_the_template_says_the_verdict():
    parts = [
        said(False, True, "llm"), said(True, False, "llm"),
        said(False, True, "template"), said(True, True, "llm"),
    ]  # fmt: skip
    found = figures(parts, 0.5)
    assert found["yes_no_words"] == 0.5
    assert found["yes_no_detector"] == 0.75
    assert found["invalid"] == 1 and found["by_model"] == 0.75


def test_the_template_is_judged_by_its_words_where_no_model_was_asked():
    parts = [said(False, True, "template", asked=False), said(True, True, "template", asked=False)]
    assert figures(parts, 0.5)["yes_no_words"] == 0.5


def test_a_set_with_too_few_good_parts_for_a_threshold_is_named():
    samples = tuple(
        Sample(Path(f"{i}.png"), None, "normal", True, split="train") for i in range(16)
    )
    with pytest.raises(SourceError, match="lid has 16 good parts in its train split, 17"):
        inspector_of(Dataset("lid", "lid", samples), None, "bank")
