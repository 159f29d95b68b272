"""The exceptions that saedex raises on purpose, each with its exit code."""

from feature_store.errors import FileError


class SaedexError(Exception):
    """A problem that the user can act on. It says what happened, what was given, what is allowed, and what to do next."""

    exit_code = 70


class ConfigError(SaedexError):
    """The command line or the configuration is wrong; every problem is listed."""

    exit_code = 2


class DataError(SaedexError):
    """The input data is wrong: empty, too short, of another encoding or tokenizer."""

    exit_code = 65


class ArtefactError(SaedexError):
    """A model, checkpoint, dictionary or store is missing or damaged."""

    exit_code = 66


class ReadsAheadError(ArtefactError):
    """A model whose predictions depend on later tokens was given where one that reads from left to right is wanted."""


class UnavailableError(SaedexError):
    """A port is taken, a device is absent or a network source did not answer."""

    exit_code = 69


class LostProcess(SaedexError):
    """Another process of a run on several was lost; the last checkpoint is sound and the same command resumes from it."""

    exit_code = 76


class StoppedByPeer(SaedexError):
    """Another process of this run has stopped and said why."""

    def __init__(self, exit_code: int):
        super().__init__("another process of this run has stopped and said why")
        self.exit_code = exit_code


class NumericError(SaedexError):
    """A loss or an activation was not finite."""

    exit_code = 71


class LockedError(SaedexError):
    """Another process holds the run folder."""

    exit_code = 73


class DiskError(SaedexError):
    """A read or write failed: disk full, permission, I/O error."""

    exit_code = 74


class Interrupted(SaedexError):
    """The run was stopped by the user; it wrote a checkpoint and the same command resumes it."""

    exit_code = 75


EXIT_CODES = {
    0: "Done (also when the run was complete already).",
    2: ConfigError.__doc__,
    65: DataError.__doc__,
    66: ArtefactError.__doc__,
    69: UnavailableError.__doc__,
    70: "A bug in saedex; the traceback is on standard error.",
    71: NumericError.__doc__,
    73: LockedError.__doc__,
    74: DiskError.__doc__,
    75: Interrupted.__doc__,
    76: LostProcess.__doc__,
}


def exit_code_of(error: BaseException) -> int:
    """The exit code of any exception; 70 for one that nobody foresaw."""
    if isinstance(error, SaedexError):
        return error.exit_code
    if isinstance(error, FileError):
        return ArtefactError.exit_code
    return DiskError.exit_code if isinstance(error, OSError) else SaedexError.exit_code
