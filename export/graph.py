"""A small ONNX graph writer. Weights are referred to, not copied: they live once, in safetensors.

Graphs are written node by node instead of traced, so that they hold only what a runtime should
compute: one opset, standard operators, no shape arithmetic left over from tracing.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engines.bundle import Port

OPSET = 20
IR_VERSION = 10
_TYPES = {
    "F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT,
    "I8": TensorProto.INT8, "U8": TensorProto.UINT8,
}  # fmt: skip
_NUMPY = {"F16": np.float16, "F32": np.float32}
Half = Literal["fp16", "bf16"]
_HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
HALF_SCOPES = ("patch", "block", "tap", "text")
"""Where `half` may compute: not in projections, text comparison, distances or head, and not in the
convolutional stem of nano: its ReLU6 layers lose most (BF16: worst token at cosine .75)."""
DTYPES = {
    "f32": TensorProto.FLOAT,
    "u8": TensorProto.UINT8,
    "i64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies in the weights file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class WeightStore:
    """A safetensors file, read by its header: tensors by name, or their place in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(size))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.tensors: dict[str, Stored] = {}
        for name, item in header.items():
            start, end = item["data_offsets"]
            place = Stored(item["dtype"], tuple(item["shape"]), 8 + size + start, end - start)
            self.tensors[name] = place

    def array(self, name: str) -> NDArray[np.float32]:
        """The tensor as f32."""
        place = self.tensors[name]
        kind = _NUMPY[place.dtype]
        count = place.length // np.dtype(kind).itemsize
        flat = np.fromfile(self.path, kind, count=count, offset=place.offset)
        return flat.reshape(place.shape).astype(np.float32)

    def reference(self, name: str, as_name: str) -> TensorProto:
        """An initializer `as_name` whose bytes stay in this file."""
        place = self.tensors[name]
        tensor = TensorProto(name=as_name, data_type=_TYPES[place.dtype], dims=place.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self.path.name), ("offset", place.offset), ("length", place.length),
        ):  # fmt: skip
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class Graph:
    """Collects nodes; every method returns the name of the tensor it made.

    `inline=True` writes weights into the graph as f32 (for the quantiser and TensorRT); otherwise
    they are external references into the weights file, cast to f32 at load. `half` makes matrix
    products and convolutions FP16 or BF16 and leaves all else FP32: norms, softmax, residual
    stream, distances (for strongly typed GPU networks, whose precisions are those of the graph).
    `emulate`: FP32 products of operands and results rounded to `half`, which is what tensor cores
    with FP32 accumulation give; for the gate, where a CPU has no such products.
    """

    def __init__(
        self,
        store: WeightStore,
        *,
        inline: bool = False,
        half: Half | None = None,
        emulate: bool = False,
    ) -> None:
        self.store, self.inline, self.half, self.emulate = store, inline, half, emulate
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.ports: tuple[list[Port], list[Port]] = ([], [])
        self._count = self._constants = 0
        self._scope = ""

    def scope(self, name: str) -> "Graph":
        """Prefix of the node names that follow; read in reports (which layer drifted)."""
        self._scope = name
        return self

    def fresh(self, hint: str) -> str:
        """A new tensor name."""
        self._count += 1
        return f"{self._scope}/{hint}_{self._count}" if self._scope else f"{hint}_{self._count}"

    def op(self, kind: str, *inputs: str, out: str | None = None, **attrs: Any) -> str:
        """One node with one output."""
        name = out or self.fresh(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attrs))
        return name

    def product(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """MatMul or Conv of f32 tensors, f32 result; computed in `half` where that may be."""
        if self.half is None or not self._scope.startswith(HALF_SCOPES):
            return self.op(kind, *inputs, **attrs)
        if self.emulate:
            return self._rounded(self.op(kind, *(self._rounded(x) for x in inputs), **attrs))
        small = [self.op("Cast", x, to=_HALVES[self.half]) for x in inputs]
        return self.op("Cast", self.op(kind, *small, **attrs), to=TensorProto.FLOAT)

    def _rounded(self, x: str) -> str:
        assert self.half is not None
        return self.op("Cast", self.op("Cast", x, to=_HALVES[self.half]), to=TensorProto.FLOAT)

    def split(self, x: str, parts: Sequence[int], axis: int) -> list[str]:
        """Split along `axis` into pieces of the given sizes."""
        names = [self.fresh("Split") for _ in parts]
        sizes = self.const(np.array(parts, np.int64))
        self.nodes.append(helper.make_node("Split", [x, sizes], names, name=names[0], axis=axis))
        return names

    def const(self, value: Any, dtype: Any = None) -> str:
        """A constant in the graph; python floats become f32, ints i64."""
        array = np.asarray(value, dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        key = f"const_{array.dtype}_{array.shape}_{array.tobytes().hex()[:4096]}"
        if array.nbytes > 2048 or key not in self.initializers:
            # numbered apart: a constant that only one of two twin graphs needs must not shift the
            # names of their nodes, by which a drifting layer is found
            self._constants += array.nbytes > 2048
            name = f"large_{self._constants}" if array.nbytes > 2048 else key
            # not ascontiguousarray: it would turn a scalar into a vector
            tensor = onnx.numpy_helper.from_array(array.copy(order="C"), name)
            self.initializers[name] = tensor
            return name
        return key

    def weight(
        self,
        name: str,
        *,
        transpose: bool = False,
        scale: Any = None,
        rows: tuple[int, int] | None = None,
    ) -> str:
        """A weight as f32, some of its rows, transposed, multiplied; folded at load by runtimes."""
        key = f"{name}{'' if rows is None else f'.{rows[0]}'}"
        key += f"{'.T' if transpose else ''}{'' if scale is None else '.scaled'}"
        if key in self.initializers or any(n.name == key for n in self.nodes):
            return key
        if self.inline:
            value = self.store.array(name)
            value = value if rows is None else value[slice(*rows)]
            value = value.T if transpose else value
            value = value if scale is None else value * np.asarray(scale, np.float32)
            value = value.astype(np.float32, order="C")
            self.initializers[key] = onnx.numpy_helper.from_array(value, key)
            return key
        return self._external(name, key, transpose, scale, rows)

    def _external(
        self, name: str, key: str, transpose: bool, scale: Any, rows: tuple[int, int] | None
    ) -> str:
        raw = f"{name}.raw"
        if name not in self.initializers and raw not in self.initializers:
            self.initializers[raw] = self.store.reference(name, raw)
        steps: list[tuple[str, list[str], dict[str, Any]]] = []
        steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
        if rows is not None:
            cut = [self.const([rows[0]]), self.const([rows[1]]), self.const([0])]
            steps.append(("Slice", cut, {}))
        if transpose:
            steps.append(("Transpose", [], {}))
        if scale is not None:
            steps.append(("Mul", [self.const(np.asarray(scale, np.float32))], {}))
        x = raw
        for i, (kind, more, attrs) in enumerate(steps):
            out = key if i == len(steps) - 1 else f"{key}.{i}"
            x = self.op(kind, x, *more, out=out, **attrs)
        return x

    def add_input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], list(shape)))
        self.ports[0].append(Port(name=name, dtype=dtype, shape=tuple(shape)))
        return name

    def add_output(self, x: str, name: str, shape: Sequence[int | str], dtype: str = "f32") -> None:
        """Declare tensor `x` as the graph output `name`."""
        self.op("Identity", x, out=name)
        self.outputs.append(helper.make_tensor_value_info(name, DTYPES[dtype], list(shape)))
        self.ports[1].append(Port(name=name, dtype=dtype, shape=tuple(shape)))

    def graft(self, model: onnx.ModelProto) -> dict[str, str]:
        """Take over all nodes and constants of a written graph: its outputs -> the tensors here.

        The graph's own inputs must be inputs here under the same names.
        """
        ends = {o.name for o in model.graph.output}
        made: dict[str, str] = {}
        for node in model.graph.node:
            if node.op_type == "Identity" and node.output[0] in ends:
                made[node.output[0]] = node.input[0]
            else:
                self.nodes.append(node)
        for tensor in model.graph.initializer:
            self.initializers[tensor.name] = tensor
            self._constants += tensor.name.startswith("large_")
        return made

    def model(self, name: str, metadata: dict[str, str] | None = None) -> onnx.ModelProto:
        """The checked model."""
        used = {i for n in self.nodes for i in n.input} | captured(self.nodes)
        kept = [t for k, t in self.initializers.items() if k in used]
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, kept)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        model.producer_name = "inspection-station"
        helper.set_model_props(model, metadata or {})
        return model


def captured(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Outer tensors that the bodies of loops read."""
    found: set[str] = set()
    for node in nodes:
        for attr in node.attribute:
            if attr.type == onnx.AttributeProto.GRAPH:
                found |= {i for n in attr.g.node for i in n.input} | captured(attr.g.node)
    return found
