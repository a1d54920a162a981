"""What an auxiliary head and each way of assigning it cost in a training step, beside the model without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.bench.bench_step import BATCH, CPU, SIZE, Step
from tests.bench.comparison import Row, Stopwatch
from yolov7.settings import LossSettings
from yolov7.system.precision import resolve_precision

_CASES = {
    "plain anchor matching": {"assigner": "anchor"},
    "auxiliary head, independent": {"auxiliary": "independent"},
    "auxiliary head, lead guided": {"auxiliary": "lead_guided"},
    "auxiliary head, coarse to fine": {"auxiliary": "coarse_to_fine"},
}


def rows(watch: Stopwatch) -> Iterator[Row]:
    """Each beside the step of the same model without an auxiliary head, assigned by OTA."""
    dtype = resolve_precision("auto", CPU)
    without = Step(dtype=dtype, channels_last=True)
    for name, settings in _CASES.items():
        step = Step(
            dtype=dtype,
            channels_last=True,
            auxiliary="auxiliary" in settings,
            settings=LossSettings.model_validate(settings),
        )
        row = watch.at_most(3).compare(f"training step, {SIZE} px, batch {BATCH}: {name}", without, step)
        assert row.plain
        assert row.ours
        yield replace(row, figure=f"{row.ours / row.plain:.2f} times the step with OTA and no auxiliary head")
