"""A USB camera for machines that have none: `v4l2.c` answers for the driver.

Programs started while it is open (camera children) see a capture device at `spec`; the path lies
under /dev (in /dev/shm), as that of a camera does, and has a stable name as in /dev/v4l/by-id.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from faultkit.camera import jpeg, picture

SOURCE = Path(__file__).with_suffix(".c")
NAME = "usb-Fake_camera_0001-video-index0"


def build_driver(folder: Path) -> Path | None:
    """Compile the LD_PRELOAD library; None without a C compiler or the kernel's headers."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/videodev2.h").exists():
        return None
    target = folder / "v4l2.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", target, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return target


class FakeV4l2:
    """Open as long as the block lasts; steer by `mode` (ok, stall, freeze, gone, busy)."""

    def __init__(self, driver: Path, fourcc: str = "MJPG", pictures: list[bytes] | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="v4l2-", dir="/dev/shm"))
        self.device = self.folder / "video0"
        link = self.folder / "v4l" / "by-id" / NAME
        link.parent.mkdir(parents=True)
        link.symlink_to("../../video0")
        self.spec = str(link)
        self.pictures = pictures or [jpeg(picture(number)) for number in range(32)]
        (self.folder / "frames").mkdir()
        for number, data in enumerate(self.pictures):
            self.show(number, data)
        (self.folder / "format").write_text(fourcc)
        self.environment = {"LD_PRELOAD": str(driver), "FAKE_V4L2": str(self.device)}
        self.mode("ok")

    def show(self, number: int, data: bytes) -> None:
        """Replace one of the pictures it shows in turn (whole, or not at all)."""
        (self.folder / "new").write_bytes(data)
        (self.folder / "new").replace(self.folder / "frames" / str(number))

    def mode(self, mode: str) -> None:
        """`gone` also takes the device file away, as the kernel does."""
        (self.folder / "new").write_text(mode)
        (self.folder / "new").replace(self.folder / "mode")
        if mode == "gone":
            self.device.unlink(missing_ok=True)
        else:
            self.device.touch()

    def controls(self) -> dict[int, int]:
        """What the driver was told, by V4L2 control id; the last of each."""
        told = self.folder / "controls"
        lines = told.read_text().splitlines() if told.exists() else []
        return {int(line.split()[0]): int(line.split()[1]) for line in lines}

    def __enter__(self) -> "FakeV4l2":
        self._before = {key: os.environ.get(key) for key in self.environment}
        os.environ.update(self.environment)
        return self

    def __exit__(self, *_exc: object) -> None:
        for key, value in self._before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        shutil.rmtree(self.folder, ignore_errors=True)
