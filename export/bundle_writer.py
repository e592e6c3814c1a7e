"""Writes the files of a bundle: engines, prompts, reference frames and answers, manifest."""

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import onnx
import onnxruntime

from engines.bundle import MANIFEST, UNSEALED, Bundle, EngineEntry, Manifest, sealed, sha256
from engines.errors import EngineError
from engines.preprocess import SPEC, spec_hash
from engines.selftest import FRAMES, OUTPUTS
from export.frames import draw
from export.graph import OPSET, Graph
from export.model.config import ModelConfig
from export.prompts import ensemble

WEIGHTS = "weights.safetensors"
PROMPTS = "prompts.json"


def write_engine(model: onnx.ModelProto, path: Path) -> None:
    """Save and check one graph (external weights must lie beside it)."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))


def entry_of(graph: Graph, path: Path, **fields: Any) -> EngineEntry:
    """Manifest entry of a written engine."""
    return EngineEntry(
        file=path.name, sha256=sha256(path), opset=OPSET,
        inputs=tuple(graph.ports[0]), outputs=tuple(graph.ports[1]), **fields,
    )  # fmt: skip


def write_prompts(out: Path) -> str:
    """prompts.json; returns its hash."""
    prompts = ensemble()
    (out / PROMPTS).write_text(json.dumps(prompts, indent=1) + "\n")
    return str(prompts["hash"])


def write_frames(out: Path) -> None:
    """The procedural reference frames: one good part and two damaged ones, three sizes.

    Always written anew: a picture that lies there may be damaged, and a build would sign it.
    """
    (out / "reference").mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(FRAMES):
        image = draw(index, defective=index > 0).image
        if not cv2.imwrite(str(out / name), image, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
            raise EngineError(f"{out / name} cannot be written: make room on the disk")


@dataclass
class Draft:
    """A bundle being built."""

    out: Path
    config: ModelConfig
    source: dict[str, str]
    trained: str
    engines: list[EngineEntry] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    gate: dict[str, Any] = field(default_factory=dict)
    built: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    """Precision -> weights file that only engines of that precision refer to."""
    _hashes: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def drop_unused(self) -> None:
        """Delete weights no engine refers to any more (their precision failed the gate)."""
        used = {e.precision for e in self.engines}
        for precision in [p for p in self.shared if p not in used]:
            (self.out / self.shared.pop(precision)).unlink(missing_ok=True)

    def _sha(self, name: str) -> str:
        """sha256 of a file; hashed again only when it was written (400 MB of weights stay)."""
        state = (self.out / name).stat()
        key = (name, state.st_mtime_ns, state.st_size)
        if key not in self._hashes:
            self._hashes[key] = sha256(self.out / name)
        return self._hashes[key]

    def manifest(self) -> Manifest:
        """The manifest over the files that are there now."""
        names = [WEIGHTS, *self.shared.values(), PROMPTS, *FRAMES]
        names += [e.file for e in self.engines]
        names += [OUTPUTS] if (self.out / OUTPUTS).is_file() else []
        prompts = json.loads((self.out / PROMPTS).read_text())
        return Manifest(
            preset=self.config.name,
            trained=self.trained,
            config=json.loads(self.config.to_json()),
            embed_dim=self.config.embed_dim,
            tap_dims=self.config.tap_dims,
            llm_hidden=self.config.llm_hidden,
            source=self.source,
            preprocess=spec_hash(),
            preprocess_spec=dict(SPEC),
            prompts=prompts["hash"],
            files={name: self._sha(name) for name in names},
            engines=tuple(self.engines),
            gate=self.gate,
            rejected=tuple(self.rejected),
            built={**versions(), **self.built},
            seal=UNSEALED,
        )

    def bundle(self) -> Bundle:
        """The draft as a bundle in memory, so that engines are tried before they ship."""
        return Bundle(self.out, self.manifest(), "draft")

    def write(self) -> None:
        """Write manifest.json last: a bundle without it is no bundle."""
        text = json.dumps(self.manifest().model_dump(mode="json"), indent=1) + "\n"
        draft = self.out / (MANIFEST + ".part")
        draft.write_bytes(sealed(text.encode()))
        draft.replace(self.out / MANIFEST)


def versions() -> dict[str, str]:
    """What built it."""
    return {
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
