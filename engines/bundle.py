"""A bundle: the folder with everything a model needs on the run side."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.errors import EngineError
from engines.preprocess import SPEC, spec_hash

MANIFEST = "manifest.json"
WEIGHTS = re.compile(r"weights[\w.-]*\.safetensors")
"""Files that the graphs refer to for their numbers."""
BUNDLES = Path(__file__).parent / "bundles"
Kind = Literal["detector", "encoder", "text", "tddf", "msspmm", "head", "prefix"]


class Port(BaseModel):
    """One input or output of an engine; dynamic dimensions carry a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    dtype: str
    shape: tuple[int | str, ...]


class EngineEntry(BaseModel):
    """One ONNX file, with what the gate measured on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str
    sha256: str
    kind: Kind
    mode: Literal["position", "nearest", "bank"] | None = None
    precision: str = "fp32"
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    passed: bool = True
    default: bool = False
    self_test_atol: float = 1e-3
    parity: dict[str, float | int | str | None] = {}
    latency_ms: float | None = None


class Manifest(BaseModel):
    """What the bundle says about itself. `files` covers every file but the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    preset: str
    trained: str
    config: dict[str, Any]
    embed_dim: int
    tap_dims: tuple[int, int, int]
    llm_hidden: int
    source: dict[str, str]
    preprocess: str
    preprocess_spec: dict[str, Any] = {}
    """The spec behind the hash, so that a refusal can name the parameter."""
    prompts: str
    files: dict[str, str]
    engines: tuple[EngineEntry, ...]
    gate: dict[str, Any] = {}
    rejected: tuple[dict[str, Any], ...] = ()
    """Engines that failed the gate: not shipped, with their figures and the reason."""
    built: dict[str, str] = {}
    """Versions and machine of the build."""
    seal: str
    """sha256 of the file itself, with zeros in this place: no byte of it can change unnoticed."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `sha` is the sha256 of manifest.json and so identifies all of it."""

    path: Path
    manifest: Manifest
    sha: str

    def file(self, name: str) -> Path:
        """Path of a file of the bundle; EngineError when the manifest does not list it."""
        if name not in self.manifest.files:
            raise EngineError(f"bundle {self.path} has no file '{name}': build it again")
        return self.path / name

    def identity(self, entry: EngineEntry) -> str:
        """sha256 of all that decides an engine's answers: its graph, the weights, the prompts.

        The graph alone does not: its numbers lie in weights files beside it.
        """
        files = self.manifest.files
        weights = sorted(files[name] for name in files if WEIGHTS.fullmatch(name))
        texts = [e.sha256 for e in self.engines("text")]  # it makes the anchors a recipe keeps
        made = [entry.sha256, *texts, *weights, self.manifest.prompts, self.manifest.preprocess]
        text = " ".join(made)
        return hashlib.sha256(text.encode()).hexdigest()

    def engines(self, kind: Kind, mode: str | None = None) -> tuple[EngineEntry, ...]:
        """Shipped engines of a kind (and mode), the default first."""
        fits = [e for e in self.manifest.engines if e.kind == kind and mode in (None, e.mode)]
        return tuple(sorted(fits, key=lambda e: (not e.default, e.latency_ms or 1e9)))


_SEAL = b'"seal": "%s"'
UNSEALED = "0" * 64


def sealed(raw: bytes) -> bytes:
    """The bytes of a manifest.json whose seal is UNSEALED, with the seal in its place."""
    blank = _SEAL % UNSEALED.encode()
    if raw.count(blank) != 1:
        raise ValueError("the manifest must hold one empty seal")
    return raw.replace(blank, _SEAL % hashlib.sha256(raw).hexdigest().encode())


def sha256(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_bundle(ref: str | Path) -> Path:
    """Folder of a bundle: a shipped name ("nano") or a path. EngineError when there is none."""
    places = [Path(ref)] if os.sep in str(ref) else [BUNDLES / str(ref), Path(ref)]
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    raise EngineError(
        f"no bundle at {places[0]}: build one with 'python -m export.build_engines --out DIR'"
    )


def _read_manifest(path: Path) -> tuple[Manifest, str]:
    raw = path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EngineError(f"{path}: {where}: {first['msg']}; build the bundle again") from error
    blank = raw.replace(_SEAL % manifest.seal.encode(), _SEAL % UNSEALED.encode())
    if hashlib.sha256(blank).hexdigest() != manifest.seal:
        raise EngineError(
            f"{path} was changed (its seal does not fit); build or copy the bundle again"
        )
    return manifest, hashlib.sha256(raw).hexdigest()


def _verify(path: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise EngineError(f"bundle {path}: {name} is missing; build or copy the bundle again")
        found = sha256(file)
        if found != expected:
            raise EngineError(
                f"bundle {path}: {name} was changed (sha256 {found[:12]}, "
                f"manifest says {expected[:12]}); build or copy the bundle again"
            )
    if manifest.preprocess != spec_hash():
        raise EngineError(
            f"bundle {path} was built for other pixels ({_difference(manifest)}): build it again "
            "with this version"
        )


def _difference(manifest: Manifest) -> str:
    """Which pixel parameters differ, or the two hashes where the manifest names none."""
    theirs = manifest.preprocess_spec
    keys = [k for k in SPEC if k in theirs and theirs[k] != SPEC[k]]
    told = [f"{k} is {theirs[k]} there and {SPEC[k]} here" for k in keys]
    hashes = f"spec {manifest.preprocess[:12]} there and {spec_hash()[:12]} here"
    return "; ".join(told) or hashes


def load_bundle(ref: str | Path = "nano") -> Bundle:
    """Find a bundle, check every hash and the preprocess spec.

    Raises EngineError naming the file and what differs.
    """
    path = find_bundle(ref)
    manifest, sha = _read_manifest(path / MANIFEST)
    for entry in manifest.engines:
        if manifest.files.get(entry.file) != entry.sha256:
            raise EngineError(f"bundle {path}: manifest disagrees with itself on {entry.file}")
    _verify(path, manifest)
    return Bundle(path=path, manifest=manifest, sha=sha)
