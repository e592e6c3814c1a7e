"""The one error tree: every failure a user can meet, with its exit code and one clear sentence.

The sentence says what is wrong, where, and what to do. `station.cli` prints it and exits with
`code`; nothing else turns an exception into an exit code.
"""


class StationError(Exception):
    """Base of all errors meant for a user. `code` is the documented exit code (README)."""

    code = 1


class UsageError(StationError):
    """The command line asks for something that makes no sense (exit 2)."""

    code = 2


class ConfigError(StationError):
    """station.toml, an environment variable or a key file is wrong (exit 3)."""

    code = 3


class SourceError(StationError):
    """A camera, folder, video or recording cannot be opened or has nothing in it (exit 4)."""

    code = 4


class EngineError(StationError):
    """A bundle, engine or runtime is damaged, unfit or disagrees with its self-test (exit 5)."""

    code = 5


class LedgerError(StationError):
    """The durable journal cannot be opened or written (exit 6)."""

    code = 6


class VerifyMismatch(StationError):
    """A verified replay gave other verdicts or scores than the recording holds (exit 7)."""

    code = 7


class RecipeError(StationError):
    """A recipe is unknown, damaged or has too few good parts (exit 8)."""

    code = 8


class InUseError(StationError):
    """A port or lock is held by another process (exit 9)."""

    code = 9
