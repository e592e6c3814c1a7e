"""The CUDA driver, by ctypes: which GPU is here, memory on it, copies, one stream.

TensorRT wants device addresses and a stream; the driver library that comes with every NVIDIA driver
gives both, so an edge box needs no further package for them. Everything runs in the device's
primary context, the one TensorRT and ONNX Runtime use too.
"""

import ctypes
import ctypes.util
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.errors import EngineError

Array = NDArray[Any]
LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: never waits for the default stream of others


@dataclass(frozen=True)
class Gpu:
    """What an engine belongs to: name, compute capability ("89") and driver version."""

    name: str
    capability: str
    driver: str

    @property
    def target(self) -> str:
        """As build targets are written: sm89."""
        return f"sm{self.capability}"


@functools.cache
def _library(path: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise EngineError(
            "no NVIDIA driver on this machine (libcuda.so.1 cannot be loaded): install the driver"
        ) from error


class Cuda:
    """One GPU (the first) and one stream of it. Not thread-safe: one owner thread."""

    def __init__(self, library: str | None = None) -> None:
        self._lib = _library(library or LIBRARY)
        self._call("cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise EngineError("the NVIDIA driver is here, but no GPU: see nvidia-smi")
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.use()
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self.stream = int(stream.value or 0)
        """Handle of the stream, as TensorRT takes it."""

    def _call(self, name: str, *args: Any) -> None:
        code = int(getattr(self._lib, name)(*args))
        if code:
            raise EngineError(f"CUDA driver: {name} failed ({self._reason(code)})")

    def _reason(self, code: int) -> str:
        text = ctypes.c_char_p()
        known = self._lib.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text)) == 0
        return (text.value or b"").decode() if known else f"error {code}"

    def use(self) -> None:
        """Make the GPU's context current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def gpu(self) -> Gpu:
        """Name, capability and driver of the GPU."""
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, ctypes.c_int(256), self._device)
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call(
                "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), self._device
            )
            parts.append(str(value.value))
        return Gpu(name.value.decode(), "".join(parts), self._driver())

    def _driver(self) -> str:
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        words = _kernel_module().split()
        numbers = [w for w in words if w[:1].isdigit() and w.count(".") >= 1]
        return f"{numbers[0]}, {cuda}" if numbers else cuda

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, value: Array) -> None:
        """Copy a C-contiguous array to the device, in order with the stream."""
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(value.ctypes.data),
            ctypes.c_size_t(value.nbytes), ctypes.c_void_p(self.stream),
        )  # fmt: skip

    def download(self, out: Array, address: int) -> None:
        """Copy from the device into a C-contiguous array; done after `synchronize`."""
        self._call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(out.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(out.nbytes), ctypes.c_void_p(self.stream),
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait for everything on the stream; a fault of a kernel surfaces here."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))


class Buffer:
    """Device memory that grows when asked for more, and is given back with its owner."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda, self.address, self._size = cuda, 0, 0

    def fit(self, size: int) -> int:
        """Address of at least `size` bytes; the contents are lost when it grows."""
        if size > self._size or not self.address:
            self.close()
            self.address, self._size = self._cuda.allocate(size), max(size, 1)
        return self.address

    def put(self, value: Array) -> int:
        """Upload an array (kept by the caller until the stream was synchronized)."""
        address = self.fit(value.nbytes)
        self._cuda.upload(address, value)
        return address

    def close(self) -> None:
        """Free the memory."""
        if self.address:
            self._cuda.free(self.address)
        self.address, self._size = 0, 0


def _kernel_module() -> str:
    path = Path("/proc/driver/nvidia/version")
    lines = path.read_text().splitlines() if path.is_file() else []
    return lines[0] if lines else ""


def gpu_here() -> Gpu:
    """The GPU of this machine; EngineError in one sentence where there is none."""
    return Cuda().gpu()


def missing() -> str:
    """Why no GPU can be used here, "" when one can."""
    try:
        gpu_here()
    except EngineError as error:
        return str(error)
    return ""
