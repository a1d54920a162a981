"""The typed content of the JSON files that stages exchange."""

from __future__ import annotations

from pydantic import Field

from yolov7.system.settings_base import Settings


class PreparedData(Settings):
    """`artifacts/prepare/dataset.json`: what the prepared data are. Each split is beside it as `<split>.npz`.

    Attributes:
        class_names: The classes, by label.
        splits: Number of images of each split: `train`, `val`, `test`.
        boxes: Number of boxes of each split.
        source: Where the data are from.
        content_hash: Hash of all pixels and boxes.
        split_hashes: Hash of all that results on each split depend on: pixels, boxes, areas and ids.
    """

    class_names: tuple[str, ...]
    splits: dict[str, int]
    boxes: dict[str, int]
    source: str
    content_hash: str
    split_hashes: dict[str, str] = Field(default_factory=dict)


class TrainSummary(Settings):
    """`artifacts/train/<variant>/<seed>/train.json`: how a training run ended, or which weights were given.

    Attributes:
        fingerprint: Of the data and of all settings that affect the result; it identifies the MLflow run.
        given: The name of the file whose weights were used without training; empty if the variant was trained.
        external: The name of the results file of a system that is not built here; empty for a model.
        loader_wait_share: Share of the training time in which the loader was waited for.
        skipped_steps: Number of steps whose loss or gradient was not finite.
        AP: AP of the moving average on val after the last epoch; None if there is no val split.
        batch_size: Images per step, over all workers; None if it is unknown.
        threads: Number of threads that computed in each worker; None if it is unknown.
        val_hash: Hash of the val split that AP was measured on, from `split_hashes`; None if there is none.
        continued_from: Earlier runs with fewer epochs that this run continued, oldest first, as `fingerprint@epoch`.
    """

    variant: str
    seed: int
    fingerprint: str
    given: str = ""
    external: str = ""
    epochs: int
    seconds: float
    images_per_second: float
    loader_wait_share: float
    skipped_steps: int
    AP: float | None
    AP50: float | None
    precision: str
    device: str
    workers: int
    batch_size: int | None = None
    threads: int | None = None
    val_hash: str | None = None
    continued_from: tuple[str, ...] = ()


class LayerProof(Settings):
    """The proof for one row of the specification, or for the detection head.

    Attributes:
        name: The name of the row; `head` for the detection head, `auxiliary head` for the part that is removed.
        parameters_before: Number of its parameters in the trained model.
        parameters_after: Number of its parameters in the deployed model.
        error: Largest difference between the outputs of both forms for the same input in float32, relative to the
            largest output; None if the layer has no parameters or is removed.
    """

    name: str
    parameters_before: int
    parameters_after: int
    error: float | None


class ReparamReport(Settings):
    """`artifacts/reparam/<variant>/<seed>/reparam.json`: the proof that the deployed model equals the trained one.

    Errors are relative to the largest output of each level.

    Attributes:
        variant: The variant.
        seed: The seed of its training.
        parameters_before: Number of parameters of the trained model.
        parameters_after: Number of parameters of the deployed model.
        gflops_before: Cost of the trained model in GFLOPs.
        gflops_after: Cost of the deployed model in GFLOPs.
        images: Number of images that the outputs were compared on.
        max_error_float32: Largest relative error in float32.
        mean_error_float32: Mean relative error in float32.
        max_error_float64: Largest relative error in float64.
        mean_error_float64: Mean relative error in float64.
        layers: The proof for each layer, in the order in which the model runs them.
    """

    variant: str
    seed: int
    parameters_before: int
    parameters_after: int
    gflops_before: float
    gflops_after: float
    images: int
    max_error_float32: float
    mean_error_float32: float
    max_error_float64: float
    mean_error_float64: float
    layers: tuple[LayerProof, ...] = ()


class Metrics(Settings):
    """`artifacts/evaluate/<variant>/<seed>/metrics.json`: the twelve COCO figures as fractions, and AP per class.

    A figure is None if the split has no objects for it.

    Attributes:
        AP_before_reparam: AP of the weights before re-parameterisation, on the same data.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    AP_before_reparam: float | None
    per_class_AP: dict[str, float | None]
    split: str
    images: int


class BenchmarkRow(Settings):
    """Latency of one model in one setting, in milliseconds per batch.

    Attributes:
        form: `trained`, or `deployed` after re-parameterisation.
        engine: What ran the model, such as `torch` or `openvino`.
        nms: Whether the time includes non-maximum suppression.
        from_file: Whether it also includes reading, decoding and letterboxing the image files.
        AP: AP of the deployed model with this engine and precision, on the val split or on at most 1,000 training
            images; None for a model that is not re-parameterised.
        fps: Images per second at the median latency.
        samples: Number of measured batches.
    """

    variant: str
    form: str
    engine: str
    precision: str
    batch: int
    nms: bool
    from_file: bool = False
    image_size: int
    AP: float | None = None
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    fps: float
    samples: int


class Benchmark(Settings):
    """`artifacts/benchmark/benchmark.json`: the latencies, and the conditions under which they were measured.

    Attributes:
        threads: Threads that computed.
        cpus: CPUs that the process could use.
        busy_cpus: How many of them other processes kept busy during the measurement; None if that is unknown.
    """

    device: str
    threads: int
    cpus: int | None = None
    busy_cpus: float | None = None
    clock_mhz: float | None
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    rows: tuple[BenchmarkRow, ...]
