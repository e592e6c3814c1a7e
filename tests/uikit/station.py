"""A scripted station for the page's tests: the real ledger and bus, procedural parts, no engine.

As a program: `python -m uikit.station --ledger FILE --pub PORT --ctl PORT --rate 5` publishes parts
for ever; every fifth has a defect. In a test: `ScriptedStation(...)` publishes on demand.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

import cv2

import uikit
from station.bus import Bus, BusConfig
from station.ledger import Ledger
from station.record_pictures import map_png, png, thumb_jpeg
from station.schema import (
    DescDraft,
    EventDraft,
    Opening,
    Region,
    ResultDraft,
    StatusFacts,
    Timings,
    hex64,
)


class ScriptedStation:
    """`part()` publishes one; the heartbeat moves while `beating`."""

    def __init__(self, ledger: Path, pub="tcp://127.0.0.1:*", ctl="tcp://127.0.0.1:*", rate=200.0):
        self.ledger = Ledger(ledger, line="line1", station="st1")
        config = BusConfig(line="line1", station="st1", pub=pub, ctl=ctl, image_per_s=rate)
        self.bus = Bus(config, self.ledger, self)
        self.beating, self.ready, self.faults, self.hb = True, True, (), 0
        self.recipe = "disc"
        self.asked: list[str] = []  # pictures that anybody asked for
        self._pictures: dict[str, tuple] = {}
        self._count = self.ledger.last_seq("result")
        self.bus.start()

    # -- what the bus asks ------------------------------------------------------------------
    def on_trigger(self, command, reply):
        reply.not_ready("scripted")

    def on_admin(self, command, reply):
        reply.refused("scripted")

    def status(self):
        self.hb += self.beating
        return StatusFacts(
            ready=self.ready,
            busy=False,
            mode="free_run",
            faults=self.faults,
            hb=self.hb,
            fps=5.0,
            disk_free=40 << 30,
            recipe=self.recipe,
            describer="template",
            version="0.1.0",
            simulated=True,
        )

    def image(self, ref):
        self.asked.append(ref)
        base, _, kind = ref.partition(":")
        held = self._pictures.get(base)
        if held is None:
            return None
        picture, amap = held
        if kind == "map":
            data = map_png(amap, None, picture.shape[:2], 0.5)
            return {"media_type": "image/png"}, data
        data = thumb_jpeg(picture) if kind == "thumb" else png(picture)
        media = "image/jpeg" if kind == "thumb" else "image/png"
        return {"media_type": media}, data

    # -- what a test does -------------------------------------------------------------------
    def part(self, verdict="OK", defect=None, score=None, picture=True):
        """Publish one part; its trigger id."""
        self._count += 1
        n = self._count
        trigger = hex64(0xA000000000 + n)
        now = time.time_ns() // 1000
        opening = Opening(
            trigger_id=trigger,
            part_id=f"disc-{n:05d}",
            received_ns=time.monotonic_ns(),
            deadline_ms=1000,
            t_trigger_us=now,
            simulated=True,
            threshold=0.5,
            recipe=self.recipe,
            recipe_sha="a" * 64,
            bundle_sha="b" * 64,
            config_sha="c" * 64,
        )
        self.ledger.open_part(opening).result(5)
        ref = f"part/{trigger}"
        if picture:
            self._pictures[ref] = uikit.part_picture(n % 50, defect), uikit.part_map(defect)
            if len(self._pictures) > 200:
                self._pictures.pop(next(iter(self._pictures)))
        default = {"OK": (0.2, "score"), "NG": (0.81, "score"), "UNDECIDED": (None, "deadline")}
        value, reason = default.get(verdict, (None, "camera"))
        regions = ()
        if defect is not None:
            x, y = defect
            regions = (Region(x=x - 28, y=y - 26, w=56, h=52, peak=0.9, area=2100),)
        draft = ResultDraft(
            trigger_id=trigger,
            verdict=verdict,
            reason=reason,
            score=value if score is None else score,
            threshold=0.5,
            regions=regions,
            region_count=len(regions),
            t_capture_us=now,
            timings_us=Timings(queue=100, acquire=3000, infer=14000),
            image_ref=ref if picture else None,
            desc_state="queued" if verdict == "NG" else "none",
        )
        self.ledger.commit_result(draft).result(5)
        return trigger

    def describe(self, trigger, sentence="A dark round pit near the right rim.", category="pit"):
        self.ledger.append(
            "desc",
            DescDraft(
                trigger_id=trigger,
                part_id="disc",
                sentence=sentence,
                source="template",
                category=category,
                defective=True,
            ),
        ).result(5)

    def event(self, kind="recipe_changed", text="disc prepared", severity="info"):
        self.ledger.append("event", EventDraft(kind=kind, text=text, severity=severity)).result(5)

    def close(self):
        self.bus.stop()
        self.ledger.close()


def mixed(station: ScriptedStation, n: int) -> None:
    """Part n of an everyday mixture."""
    if n % 5 == 4:
        spot = (240 + 95 * (-1) ** n, 130 + 17 * (n % 6))
        trigger = station.part("NG", spot, score=0.6 + 0.05 * (n % 5))
        where = "right" if spot[0] > 240 else "left"
        words = f"One dark pit of about 4 mm on the {where} side of the disc, round."
        station.describe(trigger, words, ("pit", "scratch", "pit")[n % 3])
    elif n % 23 == 17:
        station.part("UNDECIDED", picture=False)
    elif n % 31 == 26:
        station.part("ERROR", picture=False)
    else:
        station.part("OK", score=0.12 + 0.008 * ((n * 7) % 40))


def make_recipe(root: Path, name: str = "disc", references: int = 6) -> Path:
    """A recipe folder as far as the page reads it."""
    folder = root / name
    (folder / "references").mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(
        f'name = "{name}"\nnoun = "steel disc"\ntiles = [1, 1]\nmode = "position"\n'
    )
    (folder / "calibration.json").write_text('{"threshold": 0.5, "alpha": 0.05, "n": 40}')
    for n in range(references):
        picture = uikit.part_picture(1000 + n)
        cv2.imwrite(str(folder / "references" / f"good-{n:02d}.png"), picture)
    return folder


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--ledger", type=Path, required=True)
    options.add_argument("--pub", type=int, required=True)
    options.add_argument("--ctl", type=int, required=True)
    options.add_argument("--rate", type=float, default=2.0)
    options.add_argument("--parts", type=int, default=1 << 30)
    given = options.parse_args()
    station = ScriptedStation(
        given.ledger, f"tcp://127.0.0.1:{given.pub}", f"tcp://127.0.0.1:{given.ctl}"
    )
    print("up", flush=True)
    start = station._count
    for n in range(start, start + given.parts):
        mixed(station, n)
        time.sleep(1 / given.rate)
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
