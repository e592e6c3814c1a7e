"""What the describer is told of a part: one function for the running station and `station ask`."""

import numpy as np
from numpy.typing import NDArray

from engines.describer import DescribeRequest
from engines.facts import USUAL_SIDE, Area
from station.inspection import Judged, Prepared, Product, crop_of
from station.schema import Result


def describe_request(
    result: Result, product: Product, prepared: Prepared, judged: Judged
) -> DescribeRequest:
    """The request for a part that an engine has seen: ids and verdict from its `result`.

    The prefix inputs are those of the worst tile, which is the one that decided.
    """
    assert prepared.area is not None and judged.answer is not None and judged.map is not None
    recipe = product.loaded.recipe if product.loaded else None
    area, tile = prepared.area, judged.best_tile
    return DescribeRequest(
        part_id=result.part_id,
        trigger_id=result.trigger_id,
        attempt=result.attempt,
        noun=product.noun,
        verdict=str(result.verdict),
        score=float(judged.score or 0.0),
        threshold=float(result.threshold if result.threshold is not None else 1.0),
        map=judged.map,
        area=Area(area.x, area.y, area.w, area.h),
        regions=judged.regions,
        # An OK part has no regions outlined: they are counted when somebody asks about it.
        count=judged.region_count or None,
        level=judged.level,
        crop=crop_of(prepared),
        cls=np.asarray(judged.answer.cls[tile]),
        anchors=_anchors(product.anchors, tile),
        f_out=np.asarray(judged.answer.f_out[tile]),
        mm_per_px=recipe.mm_per_px if recipe else None,
        few_shot=recipe is not None,
        categories=recipe.phrases if recipe else (),
        usual=_usual(product),
    )


def _usual(product: Product) -> NDArray[np.float32] | None:
    """What good parts reach at each place, if this recipe has it (older ones have not)."""
    values = product.loaded.calibration.usual if product.loaded else ()
    if len(values) != USUAL_SIDE**2:
        return None
    return np.array(values, np.float32).reshape(USUAL_SIDE, USUAL_SIDE)


def _anchors(anchors: NDArray[np.float32] | None, tile: int) -> NDArray[np.float32] | None:
    """Unit anchors (2,E) of the tile's memory group: their length is for the detector alone."""
    if anchors is None:
        return None
    pair = anchors if anchors.ndim == 2 else anchors[min(tile, len(anchors) - 1)]
    return np.asarray(pair / np.maximum(np.linalg.norm(pair, axis=-1, keepdims=True), 1e-12))
