"""CURVE key files: `station keys new | list | revoke`.

A station's folder holds `station.json` (its own pair) and `clients/NAME.json` (public halves with
their roles). The private half of a client goes into one file that is carried to the client and
kept nowhere else. All secret files have mode 0600 and appear whole or not at all.
"""

import os
import secrets
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import zmq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import ConfigError, UsageError
from station.schema import Name

Model = TypeVar("Model", bound=BaseModel)
Z85Key = Annotated[str, Field(pattern=r"^[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$")]


class Role(StrEnum):
    """What a key may do. Only a gateway may TRIGGER and ACK; LATEST is not for gateways."""

    OBSERVER = "observer"
    GATEWAY = "gateway"
    ADMIN = "admin"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StationKey(_File):
    """The station's own pair."""

    public: Z85Key
    secret: Z85Key


class ClientKey(_File):
    """What the station knows of a client."""

    name: Name
    role: Role
    public: Z85Key
    created_us: int
    revoked: bool = False


class ClientIdentity(_File):
    """What a client carries: its own pair and the station's public key."""

    kind: Literal["isp1-client"] = "isp1-client"
    name: Name
    role: Role
    public: Z85Key
    secret: Z85Key
    station: Z85Key


def write_secret(path: Path, model: BaseModel, *, replace: bool = False) -> None:
    """Write a key file, mode 0600, durable, whole or not at all.

    UsageError if it exists; OSError, which names it, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and not replace:
        raise UsageError(f"{path} exists already: name another file, or revoke that key first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        error.filename = str(path)
        raise
    with os.fdopen(fd, "w") as stream:
        stream.write(model.model_dump_json(indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)


def _read(path: Path, kind: type[Model], remedy: str) -> Model:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
        raise ConfigError(f"the key file {path} is damaged at {where}: {remedy}") from None


def station_key(folder: Path) -> StationKey:
    """The station's pair; ConfigError when `station keys new` was never run here."""
    path = folder / "station.json"
    if not path.exists():
        raise ConfigError(f"{folder} holds no station key: run `station keys new NAME` first")
    return _read(
        path,
        StationKey,
        "put a copy of it back; or remove it, and every client needs a key of `station keys new`",
    )


def load_identity(path: Path) -> ClientIdentity:
    """A client's own file; ConfigError when it is none."""
    return _read(path, ClientIdentity, "make a new one at the station with `station keys new`")


def load_client(path: Path) -> ClientKey:
    """One public half with its role; ConfigError when it is none."""
    return _read(path, ClientKey, "remove it, and make a new one with `station keys new`")


def check_folder(folder: Path) -> None:
    """UsageError where keys are looked for in something that is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name the folder of the station's keys with --keys")


def list_clients(folder: Path) -> list[ClientKey]:
    """All clients, by name."""
    return [load_client(path) for path in sorted((folder / "clients").glob("*.json"))]


def new_client(folder: Path, name: str, role: Role, out: Path) -> ClientIdentity:
    """Make a client pair (and the station's own at the first time); `out` gets the private half."""
    station_file = folder / "station.json"
    if not station_file.exists():
        public, secret = (half.decode() for half in zmq.curve_keypair())
        write_secret(station_file, StationKey(public=public, secret=secret))
    known = folder / "clients" / f"{name}.json"
    if known.exists() and not load_client(known).revoked:
        raise UsageError(f"a key named {name} exists: choose another name or revoke it first")
    public, secret = (half.decode() for half in zmq.curve_keypair())
    try:
        identity = ClientIdentity(
            name=name, role=role, public=public, secret=secret, station=station_key(folder).public
        )
    except ValidationError:
        raise UsageError(f"{name!r} is no key name: letters, digits, '.', '_' and '-'") from None
    write_secret(out, identity)
    client = ClientKey(name=name, role=role, public=public, created_us=time.time_ns() // 1000)
    write_secret(known, client, replace=True)
    return identity


def revoke_client(folder: Path, name: str) -> ClientKey:
    """Mark a key as revoked; a running station acts on it at SIGHUP."""
    path = folder / "clients" / f"{name}.json"
    if "/" in name or not path.exists():
        raise UsageError(f"no key is named {name}: see `station keys list`")
    client = load_client(path).model_copy(update={"revoked": True})
    write_secret(path, client, replace=True)
    return client
