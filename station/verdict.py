"""From a score to a verdict: the one place where OK can be born."""

import math

from station.schema import Reason, Verdict


def judge(score: float, threshold: float, learning: bool = False) -> tuple[Verdict, Reason]:
    """Judge one part by its score (larger is worse) against its recipe's threshold.

    OK needs all of it: both numbers finite, `score <= threshold`, and a recipe that has finished
    learning. The comparison is written so that NaN fails it. A recipe that is still learning
    never says OK: a part below its threshold is UNDECIDED/recipe.
    """
    if not (math.isfinite(score) and math.isfinite(threshold)):
        return Verdict.ERROR, Reason.NOT_FINITE
    if not score <= threshold:
        return Verdict.NG, Reason.SCORE
    if learning:
        return Verdict.UNDECIDED, Reason.RECIPE
    return Verdict.OK, Reason.SCORE
