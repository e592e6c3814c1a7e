"""Doctor: which cameras there are and what they offer (V4L2, asked without opening a stream)."""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from station.doctor import Finding
from station.settings import Settings

DEV = Path("/dev")
# From linux/videodev2.h: _IOR/_IOWR('V', n, struct) with the sizes of the structs below.
QUERYCAP = 0x80685600
ENUM_FMT = 0xC0405602
ENUM_FRAMESIZES = 0xC02C564A
CAPTURE = 1
CAN_CAPTURE = 0x00000001 | 0x00001000  # single- and multi-planar
HAS_DEVICE_CAPS = 0x80000000
DISCRETE = 1


@dataclass(frozen=True)
class Mode:
    """A pixel format and its sizes ((w, h), ...); empty: the driver lists none or a range."""

    fourcc: str
    sizes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        if not self.sizes:
            return self.fourcc
        widest = max(self.sizes)
        return f"{self.fourcc} up to {widest[0]}x{widest[1]} ({len(self.sizes)} sizes)"


def cameras(settings: Settings) -> Iterator[Finding]:
    """Every capture device with its stable name; the configured one must be among them."""
    stable = _stable_names()
    found = []
    for device in sorted(DEV.glob("video*"), key=lambda p: (len(p.name), p.name)):
        try:
            card = capture_card(device)
        except OSError as error:
            yield Finding(device.name, "warn", f"cannot be opened ({error.strerror})")
            continue
        if card is None:
            continue  # a metadata node of the same camera
        found.append(device)
        offered = ", ".join(str(mode) for mode in modes(device)) or "no formats listed"
        name = stable.get(device.name, f"{device} (no stable name)")
        yield Finding(name, "ok", f"{card}: {offered}")
    if not found:
        yield Finding("cameras", "info", "none connected (folders, videos and streams work)")
    yield from _configured(settings, found)


def _configured(settings: Settings, found: list[Path]) -> Iterator[Finding]:
    for name, source in settings.sources().items():
        spec = source.spec
        device = Path(f"/dev/video{spec}") if spec.isdigit() else Path(spec)
        if not (spec.isdigit() or spec.startswith("/dev/")):
            continue
        key = f"cameras.{name}.spec" if name else "source.spec"
        if device.exists():
            state, text = "ok", f"{spec} is there"
        else:
            state, text = "warn", f"{spec} is not connected; set {key} or give --camera / --source"
        yield Finding(key, state, text)  # type: ignore[arg-type]


def _stable_names() -> dict[str, str]:
    folder = DEV / "v4l" / "by-id"
    links = sorted(folder.iterdir()) if folder.is_dir() else []
    return {link.resolve().name: str(link) for link in links}


def capture_card(device: Path) -> str | None:
    """The camera's name, None if the node captures nothing. OSError if it cannot be opened."""
    buffer = bytearray(104)
    _ask(device, QUERYCAP, buffer)
    _, card, _, _, everything, mine = struct.unpack_from("<16s32s32sIII", buffer)
    able = mine if everything & HAS_DEVICE_CAPS else everything
    return card.split(b"\0")[0].decode("utf-8", "replace") if able & CAN_CAPTURE else None


def modes(device: Path) -> tuple[Mode, ...]:
    """Formats and discrete sizes a capture device offers; empty if it answers to neither."""
    found = []
    for index in range(32):
        buffer = bytearray(64)
        struct.pack_into("<II", buffer, 0, index, CAPTURE)
        try:
            _ask(device, ENUM_FMT, buffer)
        except OSError:
            break  # EINVAL: no more formats
        pixel = struct.unpack_from("<I", buffer, 44)[0]
        fourcc = struct.pack("<I", pixel).decode("ascii", "replace").strip()
        found.append(Mode(fourcc, _sizes(device, pixel)))
    return tuple(found)


def _sizes(device: Path, pixel: int) -> tuple[tuple[int, int], ...]:
    sizes = []
    for index in range(64):
        buffer = bytearray(44)
        struct.pack_into("<II", buffer, 0, index, pixel)
        try:
            _ask(device, ENUM_FRAMESIZES, buffer)
        except OSError:
            break
        kind, width, height = struct.unpack_from("<III", buffer, 8)
        if kind != DISCRETE:
            break  # a range: the driver takes what it is asked for
        sizes.append((width, height))
    return tuple(sizes)


def _ask(device: Path, request: int, buffer: bytearray) -> None:
    handle = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(handle, request, buffer, True)
    finally:
        os.close(handle)
