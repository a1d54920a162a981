"""Budgets of a search: wall-clock time, a number of trials, or training compute."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.console import duration
from yolov7.errors import SettingError, shown

Kind = Literal["seconds", "trials", "flop"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_AMOUNT = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z]*)")
_EXAMPLES = "a time such as 30m or 8h, trials such as 40trials, or training compute such as 2e18flop"
_LARGEST = {"seconds": 3650 * 86_400.0, "trials": 1e6, "flop": 1e30}


@dataclass(frozen=True)
class Budget:
    """What a search may use.

    Attributes:
        kind: "seconds" since the command started, "trials", or floating point operations of training ("flop").
        amount: The number of seconds, trials or operations.
    """

    kind: Kind
    amount: float

    def __str__(self) -> str:
        """Return the amount with its unit."""
        return show_amount(self.kind, self.amount)


def parse_budget(text: str) -> Budget:
    """Parse a budget such as `30m`, `1h30m`, `40trials` or `2e18flop`.

    Raises:
        SettingError: If the text is no budget; the message names a similar one that is valid.
    """
    plain = text.strip().lower()
    if _TIME.fullmatch(plain):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", plain)
        return _checked(text, "seconds", sum(float(number) * _SECONDS[unit] for number, unit in parts))
    match = _AMOUNT.fullmatch(plain)
    if match is None:
        raise SettingError(f"budget {shown(text)} is not an amount; give {_EXAMPLES}")
    number, unit = float(match[1]), match[2]
    if unit in _SECONDS:
        return _checked(text, "seconds", number * _SECONDS[unit])
    if unit in ("trial", "trials"):
        return _checked(text, "trials", number)
    if unit in ("flop", "flops"):
        return _checked(text, "flop", number)
    fault = f"has the unit {unit!r}, which is none of s, m, h, d, trials, flop" if unit else "has no unit"
    similar = f"did you mean {number:g}m, {number:g}h or {max(1, round(number))}trials?"
    raise SettingError(f"budget {shown(text)} {fault}; {similar if number > 0 else f'give {_EXAMPLES}'}")


def show_amount(kind: Kind, amount: float) -> str:
    """Return an amount as text, such as `15m00s`, `40 trials` or `2e+18 flop`."""
    if kind == "flop":
        return f"{amount:.3g} flop"
    if kind == "trials":
        return f"{amount:.0f} trial{'s' * (amount != 1)}"
    return duration(amount)


def _checked(text: str, kind: Kind, amount: float) -> Budget:
    if amount <= 0:
        unit = {"seconds": "a time", "trials": "a number of trials", "flop": "an amount of compute"}[kind]
        example = {"seconds": "30m", "trials": "1trials", "flop": "1e15flop"}[kind]
        valid = text.strip().lstrip("-") if amount < 0 else example
        raise SettingError(f"budget {shown(text)} must be {unit} greater than zero; try {valid}")
    if amount > _LARGEST[kind]:
        raise SettingError(f"budget {shown(text)} must be at most {show_amount(kind, _LARGEST[kind])}; give less")
    if kind == "trials" and amount != int(amount):
        raise SettingError(f"budget {shown(text)} must be a whole number of trials; try {max(1, round(amount))}trials")
    return Budget(kind, amount)
