"""What models cost, counted or measured once and remembered: parameters and FLOPs, and latency on this device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from pipeline.artifacts.files import RUNS
from pipeline.tuning.search.space import Candidate, model_key
from yolov7.nn.cost import Cost, spec_cost
from yolov7.spec.graph import ModelSpec
from yolov7.system.files import write_whole


@final
class Remembered:
    """A JSON file of figures by name, which outlives a search."""

    def __init__(self, name: str) -> None:
        self._path = RUNS / name
        self._values: dict[str, Any] = _read(self._path)

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of a key, made where it is not known."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]

    def put(self, values: dict[str, Any]) -> None:
        """Adds values."""
        self._values.update(values)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys without a value."""
        return [key for key in keys if key not in self._values]

    def save(self) -> None:
        """Writes the file."""
        write_whole(self._path, json.dumps(self._values).encode())


@contextmanager
def counted_costs(num_classes: int) -> Iterator[Callable[[ModelSpec, int], Cost]]:
    """A function that says what a spec costs at an image size; what it counted is remembered."""
    known = Remembered("costs.json")

    def cost_of(spec: ModelSpec, image_size: int) -> Cost:
        def count() -> dict[str, Any]:
            return dataclasses.asdict(spec_cost(spec, num_classes=num_classes, image_size=image_size))

        return Cost(**known.get(f"{model_key(spec, image_size)}-{num_classes}", count))

    yield cost_of
    known.save()


@dataclasses.dataclass(frozen=True)
class Caps:
    """The largest model that is wanted; None: no matter."""

    max_gflops: float | None
    max_params: float | None  # millions
    max_latency_ms: float | None

    def keep(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Those within the caps that are known beforehand; ValueError with the nearest cap that some meet."""
        kept = candidates
        for name, cap, figure in (
            ("max-gflops", self.max_gflops, lambda candidate: candidate.gflops),
            ("max-params", self.max_params, lambda candidate: candidate.parameters_deployed / 1e6),
        ):
            kept = _below(kept, cap, figure, name=name)
        return tuple(kept)

    def keep_fast(self, candidates: Sequence[Candidate], latency_ms: dict[str, float]) -> tuple[Candidate, ...]:
        """Those within the cap on latency."""
        return tuple(_below(candidates, self.max_latency_ms, lambda c: latency_ms[c.key], name="max-latency-ms"))


def _below(
    candidates: Sequence[Candidate], cap: float | None, figure: Callable[[Candidate], float], *, name: str
) -> Sequence[Candidate]:
    if cap is None:
        return candidates
    kept = [candidate for candidate in candidates if figure(candidate) <= cap]
    if not kept:
        smallest = min(candidates, key=figure)
        least = figure(smallest)
        raise ValueError(
            f"--{name} {cap:g} is met by no model of this space; the smallest, {smallest.label}, has {least:.4g}; "
            f"try --{name} {_rounded_up(least)}"
        )
    return kept


def _rounded_up(value: float) -> str:
    """With two digits, and not below the value."""
    digits = f"{value:.1e}"
    step = 10.0 ** (int(digits.partition("e")[2]) - 1)
    return f"{float(digits) if float(digits) >= value else float(digits) + step:.6g}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return values
