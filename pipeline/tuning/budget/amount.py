"""What a search may use: wall-clock time, a number of trials, or training compute."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from yolov7.errors import shown

Kind = Literal["seconds", "trials", "flop"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_AMOUNT = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z]*)")
_EXAMPLES = "a time as in 30m or 8h, trials as in 40trials, or training compute as in 2e18flop"
_MOST = {"seconds": 3650 * 86_400.0, "trials": 1e6, "flop": 1e30}


@dataclass(frozen=True)
class Budget:
    """So many seconds since the command began, trials, or floating point operations of training."""

    kind: Kind
    amount: float

    def __str__(self) -> str:
        return show_amount(self.kind, self.amount)


def parse_budget(text: str) -> Budget:
    """`30m`, `1h30m`, `40trials` or `2e18flop`; ValueError with the nearest that works."""
    plain = text.strip().lower()
    if _TIME.fullmatch(plain):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", plain)
        return _checked(text, "seconds", sum(float(number) * _SECONDS[unit] for number, unit in parts))
    match = _AMOUNT.fullmatch(plain)
    if match is None:
        raise ValueError(f"budget {shown(text)} is no amount; give {_EXAMPLES}")
    number, unit = float(match[1]), match[2]
    if unit in _SECONDS:
        return _checked(text, "seconds", number * _SECONDS[unit])
    if unit in ("trial", "trials"):
        return _checked(text, "trials", number)
    if unit in ("flop", "flops"):
        return _checked(text, "flop", number)
    raise ValueError(f"budget {shown(text)} {_unit_fault(unit)}; {_nearest(number)}")


def show_amount(kind: Kind, amount: float) -> str:
    """`15m`, `1h05m`, `40 trials`, `2e+18 flop`."""
    if kind == "flop":
        return f"{amount:.3g} flop"
    if kind == "trials":
        return f"{amount:.0f} trial{'s' * (amount != 1)}"
    minutes, seconds = divmod(round(amount), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{seconds:02}s" if seconds else f"{minutes}m"
    return f"{seconds}s"


def _unit_fault(unit: str) -> str:
    return f"has the unit {unit!r}, which is none of s, m, h, d, trials, flop" if unit else "has no unit"


def _nearest(number: float) -> str:
    if number <= 0:
        return f"give {_EXAMPLES}"
    return f"did you mean {number:g}m, {number:g}h or {max(1, round(number))}trials?"


def _checked(text: str, kind: Kind, amount: float) -> Budget:
    if amount <= 0:
        unit = {"seconds": "time", "trials": "number of trials", "flop": "compute"}[kind]
        positive = text.strip().lstrip("-")
        nearest = positive if amount < 0 else {"seconds": "30m", "trials": "1trials", "flop": "1e15flop"}[kind]
        raise ValueError(f"budget {shown(text)} must be a {unit} above zero; try {nearest}")
    if amount > _MOST[kind]:
        raise ValueError(f"budget {shown(text)} is more than {show_amount(kind, _MOST[kind])}; give less")
    if kind == "trials" and amount != int(amount):
        raise ValueError(f"budget {shown(text)} must be a whole number of trials; try {max(1, round(amount))}trials")
    return Budget(kind, amount)
