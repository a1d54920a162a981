"""Classes of a model and of a data set, matched by their names. Imports nothing that takes long."""

from __future__ import annotations

from collections.abc import Sequence


def match_names(names: Sequence[str], others: Sequence[str]) -> tuple[int, ...]:
    """Match the classes of a model and of a data set by their names.

    A class with exactly the same name is preferred. Otherwise, names are equal if they differ in upper and lower case,
    spaces, `_` and `-` only.

    Args:
        names: Class names of one of both.
        others: Class names of the other one.

    Returns:
        For each of `names` its place in `others`; -1 if it is not among them.
    """
    exact = {name: place for place, name in reversed(list(enumerate(others)))}
    plain = {_plain(name): place for place, name in reversed(list(enumerate(others)))}
    return tuple(exact.get(name, plain.get(_plain(name), -1)) for name in names)


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign not in " _-")
