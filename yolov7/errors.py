"""The errors that a user can cause; each message names the thing, its value, the rule and the remedy, in one line."""

from __future__ import annotations

import errno
import reprlib


class SpecError(ValueError):
    """A model specification that cannot be built."""


class DataError(ValueError):
    """Images or annotations that cannot be used."""


class ArtifactError(ValueError):
    """A file handed from one stage to the next that is missing, damaged or of another make."""


def one_line(message: object, *, limit: int = 400) -> str:
    """The text of a message or an error without line breaks and control characters, cut after `limit` characters."""
    text = " ".join(str(message).split()) or type(message).__name__
    printable = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[: limit + 1])
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


def told(error: BaseException) -> str:
    """An error in one line; one of the disk or of permissions names the file and the remedy."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return one_line(f"{error.filename or 'a file'}: {error.strerror}; {_REMEDIES[error.errno]}")
    return one_line(error)


def is_mendable(error: BaseException) -> bool:
    """Whether it is the user's to mend, so that trying again would only repeat it."""
    return isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _REMEDIES)


def shown(value: object) -> str:
    """A value as a message quotes it: its repr, cut where it is long or deep."""
    return one_line(_SHORT.repr(value), limit=80)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60
_REMEDIES = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space of your quota, then run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f), then run the same command again",
    errno.EROFS: "run this in a folder that can be written",
    errno.EACCES: "give yourself the right to it, or run this in a folder of your own",
    errno.EPERM: "give yourself the right to it, or run this in a folder of your own",
    errno.ENAMETOOLONG: "choose a shorter name",
}
