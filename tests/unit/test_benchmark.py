"""Interleaved timing, and the benchmark stage on small models."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
import torch

from pipeline.artifacts.files import read_json
from pipeline.artifacts.reports import Benchmark
from pipeline.params import BenchmarkSettings
from pipeline.report.summary import headline_row
from pipeline.stages.benchmark import _drift, _load, benchmark, benchmark_metrics, fps_before_and_after, read_batch
from tests.artifacts import benchmark_of, write_prepared, write_weights
from yolov7.data.index import load_index
from yolov7.engines.open_vino import has_fast_bfloat16
from yolov7.errors import ArtifactError
from yolov7.system.threads import Threads, usable_cpus
from yolov7.system.timing import Rounds, measure_interleaved, summarise


class Machine:
    """A clock that advances only while a subject runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def subject(self, name: str, seconds: float) -> float:
        self.now += seconds
        self.calls.append(name)
        return seconds


def measure(machine: Machine, *, rounds: Rounds) -> list[list[float]]:
    subjects = [lambda: machine.subject("fast", 0.01), lambda: machine.subject("slow", 0.1)]
    return measure_interleaved(subjects, rounds=rounds, generator=random.Random(0), clock=lambda: machine.now)


def test_every_subject_has_the_same_time_in_every_round() -> None:
    samples = measure(Machine(), rounds=Rounds(count=5, seconds=0.195, warmup_seconds=0.0))
    assert [len(taken) for taken in samples] == [5 * 20, 5 * 2]


def test_rounds_are_interleaved_and_their_order_changes() -> None:
    machine = Machine()
    measure(machine, rounds=Rounds(count=12, seconds=0.001, warmup_seconds=0.0))
    turns = machine.calls[2::2]  # after the warm-up two calls a turn: one uncounted, one counted
    rounds = [tuple(turns[i : i + 2]) for i in range(0, len(turns), 2)]
    assert len(rounds) == 12
    assert set(rounds) == {("fast", "slow"), ("slow", "fast")}


def test_warm_up_and_the_first_call_of_a_turn_are_not_counted() -> None:
    machine = Machine()
    samples = measure(machine, rounds=Rounds(count=3, seconds=0.001, warmup_seconds=0.5))
    assert [len(taken) for taken in samples] == [3, 3]
    assert len(machine.calls) == 50 + 5 + 2 * 2 * 3


def test_percentiles_are_over_all_samples() -> None:
    latency = summarise([0.001 * i for i in range(101)])
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == pytest.approx((50, 90, 99))
    assert latency.samples == 101


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchmarkSettings:
    """Two variants with small weights in the working folder, and settings that take a second."""
    monkeypatch.chdir(tmp_path)
    write_prepared()
    write_weights("a")
    write_weights("b")
    brief = {"rounds": 3, "seconds_per_round": 0.001, "warmup_seconds": 0, "batch_sizes": [1, 4]}
    brief["precisions"] = ["float32", "bfloat16"]
    return BenchmarkSettings.model_validate(brief)


def test_the_stage_measures_every_form_batch_and_precision_with_and_without_suppression(
    params: BenchmarkSettings,
) -> None:
    result = benchmark(params, ("a", "b"), seed=0, device="cpu")
    settings = [(row.variant, row.form, row.precision, row.batch, row.nms, row.from_file) for row in result.rows]
    assert len(settings) == len(set(settings)) == 2 * 2 * 2 * 2 * 3
    for row in result.rows:
        assert row.samples >= 3
        assert row.image_size == 64
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.fps == pytest.approx(1000 * row.batch / row.p50_ms)
    assert result.device
    assert result.versions["torch"]
    assert (result.threads, result.cpus) == (torch.get_num_threads(), usable_cpus())
    assert result.busy_cpus is None or 0 <= result.busy_cpus <= result.cpus


def test_suppression_and_reading_cost_time(params: BenchmarkSettings) -> None:
    rows = benchmark(params, ("a", "b"), seed=0, device="cpu").rows
    for model, suppressed, from_file in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert model.p50_ms < suppressed.p50_ms < from_file.p50_ms
        assert (model.nms, suppressed.nms, from_file.from_file) == (False, True, True)


@pytest.mark.slow
@pytest.mark.engines
def test_exported_models_are_measured_with_the_ap_of_their_file(
    params: BenchmarkSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = params.model_copy(update={"engines": ("torch", "openvino"), "batch_sizes": (1,)})
    result = benchmark(settings, ("a",), seed=0, device="cpu")
    rows = [row for row in result.rows if row.engine == "openvino"]
    assert [row.precision for row in rows[::3]] == ["float32", *(["bfloat16"] if has_fast_bfloat16() else [])]
    assert all(row.form == "deployed" for row in rows)
    assert all((row.AP is None) == (row.form == "trained") for row in result.rows)
    assert result.versions["openvino"]
    left_out = "openvino does not compute in bfloat16 on this machine; it is left out"
    assert (left_out in " ".join(capfd.readouterr().out.split())) == (not has_fast_bfloat16())


def test_a_machine_that_becomes_slower_is_reported() -> None:
    steady, slower = [(0.1, 0.1, 0.1)] * 9, [(0.1 + 0.01 * k, 0.2, 0.3) for k in range(9)]
    assert _drift([steady, steady]) == ()
    assert "1.55 times as slow" in _drift([slower])[0]


def test_other_processes_that_compute_meanwhile_are_reported() -> None:
    assert _load(Threads(2, cpus=2, busy=0.3)) == _load(Threads(2, cpus=2, busy=None)) == ()
    assert "kept 1.2 of 2 CPUs busy during the measurement, and 1 thread computed" in _load(Threads(1, 2, busy=1.2))[0]


def test_the_stage_writes_json_and_csv(params: BenchmarkSettings) -> None:
    result = benchmark(params, ("a", "b"), seed=0, device="cpu")
    folder = Path("artifacts/benchmark")
    assert read_json(folder / "benchmark.json", Benchmark, made_by="benchmark") == result
    lines = list(csv.DictReader((folder / "benchmark.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(line["fps"]) for line in lines] == [row.fps for row in result.rows]


def test_a_batch_is_letterboxed_to_the_size_of_the_model(params: BenchmarkSettings) -> None:
    paths = load_index(Path("artifacts/prepare/val.npz")).paths
    images = read_batch([*paths, paths[0]], image_size=64)
    assert images.shape == (4, 3, 64, 64)
    assert (images[3] == images[0]).all()
    assert (images[1] != images[0]).any()


def test_missing_weights_are_named(params: BenchmarkSettings) -> None:
    Path("artifacts/reparam/b/0/weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"reparam/b/0/weights\.safetensors"):
        benchmark(params, ("a", "b"), seed=0, device="cpu")


def test_figures_for_tracking() -> None:
    result = benchmark_of(["a", "b"])
    assert fps_before_and_after(result, "a") == (100.0, 160.0)
    assert fps_before_and_after(result, "none") == (None, None)
    metrics = benchmark_metrics(result, "a")
    assert metrics["benchmark/fps"] == 160.0
    assert metrics["benchmark/fps_deployed_torch_float32_batch1_nms"] == 80.0
    assert headline_row(result, variant="a", form="deployed") == result.rows[2]
