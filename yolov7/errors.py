"""Errors that a user can correct. Each message is one line that names the thing, its value, the rule and the remedy.

Only these errors, and an `OSError` about a file that the user named, are shown as one line. Every other exception is a
bug and is shown with its traceback.
"""

from __future__ import annotations

import difflib
import errno
import reprlib
from collections.abc import Iterable


class UserError(ValueError):
    """Base of all errors that a user can correct.

    It is a `ValueError`, so that pydantic reports it with the key that it concerns.
    """


class SettingError(UserError):
    """A setting, an option or an argument that cannot be used."""


class SpecError(UserError):
    """A model specification that cannot be built."""


class DataError(UserError):
    """Images or annotations that cannot be used."""


class ArtifactError(UserError):
    """A file that is missing, damaged, or does not fit the files that it is used with."""


class TrainingError(UserError):
    """A training run that cannot continue."""


def one_line(message: object, *, limit: int = 400) -> str:
    """Return a text without line breaks and control characters.

    Args:
        message: A text, or an error whose text is used.
        limit: The largest number of characters; a longer text is shortened.
    """
    text = " ".join(str(message).split()) or type(message).__name__
    printable = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[: limit + 1])
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


def told(error: BaseException) -> str:
    """Describe an error in one line.

    Args:
        error: Any error. For a full disk or missing permissions, the line names the file and the remedy. An
            error that torch passes on from a loader worker has the whole traceback of that process as its text, of
            which the last line is used.
    """
    lines = str(error).splitlines()
    if lines and lines[0].startswith("Caught "):  # torch's first line
        return one_line(lines[-1].partition(": ")[2] or lines[-1])
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return one_line(f"{error.filename or 'a file'}: {error.strerror}; {_REMEDIES[error.errno]}")
    return one_line(error)


def is_mendable(error: BaseException) -> bool:
    """Return whether the user has to correct the cause, so that a retry would only repeat the error.

    Args:
        error: Any error.
    """
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in _REMEDIES)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` if a known name is similar, else an empty string.

    Args:
        name: An unknown name.
        known: All known names.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def shown(value: object) -> str:
    """Return the repr of a value for an error message, shortened if it is long or deeply nested.

    Args:
        value: Any value.
    """
    return one_line(_SHORT.repr(value), limit=80)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun in the singular or plural.

    Args:
        number: How many there are.
        noun: The noun in the singular.
        plural: Its plural; the noun with an "s" by default.

    Returns:
        For example `1 epoch` or `1,024 images`.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def wanted_list(given: object) -> str:
    """Return the rule of a setting that is a list, in the words of YAML, where pydantic says "a valid tuple".

    Args:
        given: What was given in its place.

    Returns:
        For example `must be a list, such as [mypkg]`; without an example if the value cannot be the only item.
    """
    is_item = isinstance(given, (str, int, float)) and not isinstance(given, bool) and str(given).strip()
    return "must be a list" + (f", such as [{one_line(given, limit=60)}]" if is_item else "")


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60
_REMEDIES = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space of your quota, then run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f), then run the same command again",
    errno.EROFS: "run this in a folder that can be written",
    errno.EACCES: "change the permissions, or run this in a folder of your own",
    errno.EPERM: "change the permissions, or run this in a folder of your own",
    errno.ENAMETOOLONG: "choose a shorter name",
}
