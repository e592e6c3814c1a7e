"""Folder layouts of published sets: MVTec-AD, VisA, MT, BSData, CFD, and plain good/bad."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from calibration.datasets import IMAGE_SUFFIXES, Sample
from engines.errors import SourceError

# CFD calls none of its images good; these eight show no crack.
CFD_CRACK_FREE = {f"{number:03d}" for number in range(201, 209)}
GOOD, BAD = ("good", "ok", "normal"), ("bad", "ng", "defect", "anomaly")


def images(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)


def scan(root: Path) -> list[Sample]:
    """Samples of whichever layout the folder has, without splits; SourceError when none fits."""
    for fits, read in LAYOUTS:
        if fits(root):
            found = sorted(read(root), key=lambda s: s.image)
            if found:
                return found
    raise SourceError(
        f"{root} has no known layout: give index.jsonl, folders good/ and bad/, "
        "or a published set (MVTec-AD or VisA product, MT, BSData, CFD)"
    )


def _mvtec(root: Path) -> Iterator[Sample]:
    for part in ("train", "test"):
        for folder in sorted(p for p in (root / part).iterdir() if p.is_dir()):
            for image in images(folder):
                if folder.name == "good":
                    yield Sample(image, None, "normal", True)
                    continue
                mask = root / "ground_truth" / folder.name / f"{image.stem}_mask.png"
                yield Sample(image, mask if mask.is_file() else None, folder.name, False)


def _visa(root: Path) -> Iterator[Sample]:
    data = root / "Data"
    for image in images(data / "Images" / "Normal"):
        yield Sample(image, None, "normal", True)
    for image in images(data / "Images" / "Anomaly"):
        mask = data / "Masks" / "Anomaly" / f"{image.stem}.png"
        # VisA's masks hold small class numbers, not 0 and 255.
        yield Sample(image, mask if mask.is_file() else None, "anomaly", False, above=0)


def _mt(root: Path) -> Iterator[Sample]:
    for folder in sorted(root.glob("MT_*")):
        category = folder.name.removeprefix("MT_").lower()
        normal = category == "free"
        for image in sorted((folder / "Imgs").glob("*.jpg")):
            mask = image.with_suffix(".png")
            known = None if normal or not mask.is_file() else mask
            yield Sample(image, known, "normal" if normal else category, normal)


def _bsdata(root: Path) -> Iterator[Sample]:
    for image in images(root / "data"):
        outline = root / "label" / f"{image.stem}.json"
        if not outline.is_file():
            yield Sample(image, None, "normal", True)
            continue
        try:
            shapes = json.loads(outline.read_text(encoding="utf-8"))["shapes"]
            polygons = tuple(tuple((x, y) for x, y in shape["points"]) for shape in shapes)
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{outline} is no outline file ({error!r}): remove it") from error
        yield Sample(image, None, "pitting", False, polygons=polygons)


def _cfd(root: Path) -> Iterator[Sample]:
    for image in images(root / "cfd_image"):
        mask = root / "seg_gt" / f"{image.stem}.png"
        normal = image.stem in CFD_CRACK_FREE
        known = None if normal or not mask.is_file() else mask
        yield Sample(image, known, "normal" if normal else "crack", normal)


def _good_bad(root: Path) -> Iterator[Sample]:
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        kind = folder.name.lower()
        if kind not in GOOD + BAD:
            continue
        for image in images(folder):
            mask = root / "masks" / f"{image.stem}.png"
            bad = kind in BAD
            known = mask if bad and mask.is_file() else None
            yield Sample(image, known, "defect" if bad else "normal", not bad)


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda root: all((root / name).is_dir() for name in names)


def _is_good_bad(root: Path) -> bool:
    return any(p.is_dir() and p.name.lower() in GOOD for p in root.iterdir())


LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Iterator[Sample]]], ...] = (
    (_has("train/good", "test"), _mvtec),
    (_has("Data/Images/Normal", "Data/Images/Anomaly"), _visa),
    (lambda root: any(root.glob("MT_*/Imgs")), _mt),
    (_has("data", "label"), _bsdata),
    (_has("cfd_image", "seg_gt"), _cfd),
    (_is_good_bad, _good_bad),
)
