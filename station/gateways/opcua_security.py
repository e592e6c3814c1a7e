"""Who may talk to the OPC UA gateway: users with passwords, and a certificate for encryption.

The users' file has one `name:salt:hash` per line (scrypt; made by `station gateway opcua user`).
Certificate and key are made at the first start in the folder given, self-signed; replace them by
your own where the plant has a certificate authority.
"""

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any

from engines.errors import ConfigError, UsageError

# scrypt's interactive parameters: about 50 ms and 16 MiB a login.
_N, _R, _P = 2**14, 8, 1


def hash_password(password: str, salt: bytes) -> bytes:
    """Scrypt of a password."""
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=32)


def user_line(name: str, password: str) -> str:
    """The line of the users' file; UsageError for a name or password that cannot be used."""
    if not name or ":" in name or not name.isprintable():
        raise UsageError(f"{name!r} is no user name: use printable characters without a colon")
    if len(password) < 8:
        raise UsageError("the password is too short: use at least 8 characters")
    salt = secrets.token_bytes(16)
    return f"{name}:{salt.hex()}:{hash_password(password, salt).hex()}"


class Users:
    """The users of a file; ConfigError when it cannot be read or a line is damaged."""

    def __init__(self, path: Path) -> None:
        self._users: dict[str, tuple[bytes, bytes]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(
                f"the users' file {path} cannot be read ({said}); "
                "make one with `station gateway opcua user NAME`"
            ) from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._add(path, number, line)

    def _add(self, path: Path, number: int, line: str) -> None:
        try:
            name, salt, digest = line.split(":")
            self._users[name] = (bytes.fromhex(salt), bytes.fromhex(digest))
        except ValueError:
            raise ConfigError(
                f"{path}, line {number}: not name:salt:hash; write it with "
                "`station gateway opcua user NAME`"
            ) from None

    def known(self, name: str | None, password: str | None) -> bool:
        """Whether name and password fit (constant time for a wrong password)."""
        salt, digest = self._users.get(name or "", (b"", b""))
        return bool(digest) and hmac.compare_digest(hash_password(password or "", salt), digest)


def user_manager(users: Users) -> Any:
    """asyncua's hook: a session only for who is known; nobody is an administrator."""
    from asyncua.crypto.permission_rules import User, UserRole

    class Manager:
        def get_user(
            self,
            iserver: Any,
            username: str | None = None,
            password: str | bytes | None = None,
            certificate: Any = None,
        ) -> Any:
            text = password.decode(errors="replace") if isinstance(password, bytes) else password
            return User(role=UserRole.User) if users.known(username, text) else None

    return Manager()


async def certificate(folder: Path, application_uri: str, host: str) -> tuple[Path, Path]:
    """Paths of certificate (DER) and private key (PEM), made when they are not there."""
    from asyncua.crypto.cert_gen import setup_self_signed_certificate
    from cryptography.x509.oid import ExtendedKeyUsageOID

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cert, key = folder / "opcua.der", folder / "opcua.pem"
    await setup_self_signed_certificate(
        key,
        cert,
        application_uri,
        host,
        [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
        {"organizationName": "inspection station", "commonName": "inspection station gateway"},
    )
    key.chmod(0o600)
    return cert, key
