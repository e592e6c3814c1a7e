"""Draw procedural parts: `PYTHONPATH=.:tests python -m uikit.parts FOLDER`.

FOLDER/good holds 40 good steel discs (to enrol), FOLDER/line 60 of which every fifth has a pit.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

import uikit


def draw(folder: Path, good: int = 40, line: int = 60) -> None:
    """Write JPEGs of 480x360."""
    for name, count, first in (("good", good, 0), ("line", line, 500)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            defect = None
            if name == "line" and n % 5 == 3:
                angle = n * 1.3
                defect = (int(240 + 95 * np.cos(angle)), int(180 + 95 * np.sin(angle)))
            path = folder / name / f"disc-{n:03d}{'-pit' if defect else ''}.jpg"
            picture = uikit.part_picture(first + n, defect)
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    print(f"{good} good parts in {folder / 'good'}, {line} parts in {folder / 'line'}")


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "parts"))
