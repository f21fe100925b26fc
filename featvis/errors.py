"""The one exception that a reader's mistake raises: a clear sentence, no traceback on the command line."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class FeatvisError(ValueError):
    """What was given and what would be valid, in one sentence."""


class DiskFull(FeatvisError):
    """A full disk: nothing was asked for that is wrong, and what was finished is kept."""


def listed(names: Iterable, most: int = 12) -> str:
    """`names` as "a, b, c ... (40 in all)" for an error's sentence."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} ... ({len(names)} in all)"


def reason(error: BaseException) -> str:
    """The first line of what an exception says, or else its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn a full disk, met while `place` is written, into a sentence; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"{place} could not be written: {error.strerror}; what was finished before is intact, so make room and run "
            "it again."
        ) from error
