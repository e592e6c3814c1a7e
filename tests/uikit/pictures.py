"""Make the pictures of docs/: `PYTHONPATH=.:tests python -m uikit.pictures docs/pictures`.

A scripted station with procedural parts, the real page, headless Chromium.
"""

import socket
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from station.client import Client
from station.settings import UiSettings
from station.ui.server import Ui
from uikit import station as uistation
from uikit.webdriver import Browser

QUALITY = 82
NANO = Path(__file__).parents[2] / "engines/bundles/nano"


def save(browser: Browser, path: Path) -> None:
    """A screenshot as JPEG: a tenth of the bytes of a PNG."""
    picture = cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    print(f"{path}: {path.stat().st_size // 1024} KiB")


def play(station: uistation.ScriptedStation, parts: int) -> None:
    """A little history that ends with a described reject."""
    for n in range(parts):
        uistation.mixed(station, n)
    trigger = station.part("NG", (326, 128), score=0.83)
    station.describe(trigger, "One dark pit of about 4 mm near the right rim of the disc, round.")


def main(out: Path) -> None:
    """Every picture of the documents."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        station = uistation.ScriptedStation(folder / "ledger.db")
        uistation.make_recipe(folder / "recipes")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ui = Ui(
            UiSettings(port=port),
            lambda who: Client(station.bus.ctl_address, station.bus.pub_address, name=who),
            folder / "recipes",
            NANO if NANO.is_dir() else None,
            folder / "flags.json",
        )
        ui.start()
        browser = Browser()
        browser.open(ui.address)
        browser.wait("app.state.alive", 30)
        play(station, 120)
        browser.wait("document.querySelector('#words').textContent.startsWith('One dark pit')", 60)
        last = "document.querySelector('#verdict').dataset.part"
        browser.wait(f"document.querySelector('#picture').dataset.part === {last}", 60)
        browser.run("setTheme('light')")
        time.sleep(1)
        save(browser, out / "operator.jpg")
        browser.run("document.querySelector('#film button').click()")
        browser.wait("app.detailScene && !document.querySelector('#goodfigure').hidden", 30)
        time.sleep(0.5)
        save(browser, out / "reject.jpg")
        browser.run("document.querySelector('#detail').close(); selectTab('engineer')")
        browser.wait("engineer.parts.length > 50", 30)
        time.sleep(0.5)
        save(browser, out / "engineer.jpg")
        browser.run("selectTab('line')")
        station.beating = False
        browser.wait("!document.querySelector('#banner').hidden", 10)
        time.sleep(0.5)
        save(browser, out / "banner.jpg")
        browser.close()
        ui.stop()
        station.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
