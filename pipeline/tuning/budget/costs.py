"""What models cost: parameters and FLOPs are counted, latency is measured; both are cached between searches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from pipeline.artifacts.files import RUNS
from pipeline.tuning.search.space import Candidate, model_key
from yolov7.errors import SettingError
from yolov7.nn.cost import Cost, spec_cost
from yolov7.spec.graph import ModelSpec
from yolov7.system.files import write_whole


@final
class JsonCache:
    """Values by name in a JSON file under `runs/`; a damaged file counts as empty.

    Attributes:
        values: The values; `save` writes them.
    """

    def __init__(self, name: str) -> None:
        """Read the file if it exists.

        Args:
            name: The name of the file without its ending. The file's own name starts with a dot, as no variant's does.
        """
        self._path = RUNS / f".{name}.json"
        self.values: dict[str, Any] = {}
        try:
            content = json.loads(self._path.read_bytes()) if self._path.is_file() else {}
            self.values = content if isinstance(content, dict) else {}
        except ValueError:
            pass

    def save(self) -> None:
        """Write the file."""
        write_whole(self._path, json.dumps(self.values).encode())


@contextmanager
def counted_costs(num_classes: int) -> Iterator[Callable[[ModelSpec, int], Cost]]:
    """Yield a function that counts the cost of a spec at an image size in pixels, and cache what it counts.

    Args:
        num_classes: The number of classes that the models detect.
    """
    cache = JsonCache("costs")

    def cost_of(spec: ModelSpec, image_size: int) -> Cost:
        key = f"{model_key(spec, image_size)}-{num_classes}"
        try:
            return Cost(**cache.values[key])
        except (KeyError, TypeError):  # it was not counted, or by another version
            cost = spec_cost(spec, num_classes=num_classes, image_size=image_size)
            cache.values[key] = dataclasses.asdict(cost)
            return cost

    yield cost_of
    cache.save()


def within_caps(
    candidates: Sequence[Candidate], *, max_gflops: float | None, max_params: float | None
) -> tuple[Candidate, ...]:
    """Return the models whose counted cost is within the caps.

    Args:
        candidates: The models, at least one.
        max_gflops: Largest GFLOPs of the deployed model, or None.
        max_params: Largest number of parameters of the deployed model in millions, or None.

    Raises:
        SettingError: If no model is within a cap; the message names the smallest cap that works.
    """
    kept = _within(candidates, max_gflops, lambda candidate: candidate.gflops, option="max-gflops")
    return _within(kept, max_params, lambda candidate: candidate.parameters_deployed / 1e6, option="max-params")


def within_latency(
    candidates: Sequence[Candidate], latency_ms: Mapping[str, float], *, max_latency_ms: float
) -> tuple[Candidate, ...]:
    """Return the models whose measured latency is within the cap.

    Args:
        candidates: The models, at least one.
        latency_ms: Milliseconds by the key of the model.
        max_latency_ms: Largest latency, milliseconds.

    Raises:
        SettingError: If no model is within the cap; the message names the smallest cap that works.
    """
    return _within(candidates, max_latency_ms, lambda candidate: latency_ms[candidate.key], option="max-latency-ms")


def _within(
    candidates: Sequence[Candidate], cap: float | None, value_of: Callable[[Candidate], float], *, option: str
) -> tuple[Candidate, ...]:
    kept = tuple(candidate for candidate in candidates if cap is None or value_of(candidate) <= cap)
    if cap is not None and not kept:
        smallest = min(candidates, key=value_of)
        value = value_of(smallest)
        raise SettingError(
            f"--{option} {cap:g} excludes every model of this search; the smallest, {smallest.label}, has {value:.4g}; "
            f"try --{option} {_rounded_up(value)}"
        )
    return kept


def _rounded_up(value: float) -> str:
    """Return the value with two significant digits, never less than the value."""
    digits = f"{value:.1e}"
    step = 10.0 ** (int(digits.partition("e")[2]) - 1)
    return f"{float(digits) if float(digits) >= value else float(digits) + step:.6g}"
