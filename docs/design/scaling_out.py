"""Compute what limits training on many GPUs, and what COCO costs: tables of scaling-out.md and ../reproduce.md.

`python docs/design/scaling_out.py` prints the tables, and with the path of a page it renews the tables of that page.
`--rate yolov7=410` uses a measured rate in images per second instead of the assumed one.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from yolov7.nn.cost import count_operations, count_parameters
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec

MODELS = ("yolov7-tiny", "yolov7", "yolov7x", "yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e")
BASELINES = (
    *("yolov4-csp", "yolor-csp", "yolor-csp-x", "yolor-p6", "yolor-w6", "yolor-e6", "yolor-d6"),
    *("yolov4", "yolov4-tiny", "yolov4-tiny-3l"),
    *(f"yolov5{size}{levels}" for levels in ("", "6") for size in "nsmlx"),
    *(f"{family}-{size}" for family in ("yolox", "ppyoloe") for size in "smlx"),
)
GPUS = (1, 8, 64, 512)
LINKS = {"100G": 100e9 / 8, "400G": 400e9 / 8, "8 x 400G": 8 * 400e9 / 8}  # bytes per second and direction of a node


@dataclass(frozen=True)
class Facts:
    """Figures of a model as it is trained, with all branches and the auxiliary head.

    Attributes:
        name: The spec.
        image_size: Side of the images, pixels.
        parameters: Number of parameters.
        buffer_bytes: Size of the batch norm statistics.
        forward_flops: Floating point operations of a forward pass of one image.
    """

    name: str
    image_size: int
    parameters: int
    buffer_bytes: int
    forward_flops: float

    @property
    def gradient_bytes(self) -> int:
        """Size of the gradients, which are float32 in every precision."""
        return 4 * self.parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Size of the weights, their average and SGD's momentum, with two copies of the statistics."""
        return 3 * self.gradient_bytes + 2 * self.buffer_bytes


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch by purpose; loader, network, validation and checkpoint only count while GPUs wait."""

    gpu: float
    loader: float
    network: float
    validation: float
    checkpoint: float

    @property
    def total(self) -> float:
        """Seconds of the whole epoch."""
        return sum(astuple(self))


@dataclass(frozen=True)
class Assumptions:
    """Everything that is not counted on the models; the page says which values were measured.

    Attributes:
        rates: Measured images per second of a GPU by model.
        train_flops: FLOPs per second that a GPU reaches in training, for models without a measured rate.
        images_per_gpu: Images per step.
        gpus_per_node: GPUs per node.
        nvlink: Bytes per second of an all-reduce within a node.
        link_share: Share of a link's rate that is reached.
        hop_seconds: Duration of one message between two GPUs.
        bucket_bytes: Size of the buckets in which DDP reduces gradients.
        overlap: Share of a step, the backward pass, during which gradients are reduced.
        small_reduces: Small all-reduces per step: matches; losses and whether they are finite; stop or save.
        loader_processes: Loader processes per GPU, the most that `loader_workers: auto` starts.
        sample_seconds: Seconds to prepare a training sample by recipe.
        train_images: Images of an epoch.
        val_images: Images of a validation.
        letterbox_seconds: Seconds to read and letterbox an image by image size; the next larger size counts.
        suppression_seconds: Seconds of suppression per image.
        scoring_seconds: Seconds to compute the COCO figures of the whole split.
        copy_rate: Bytes per second from the GPU, while training waits.
        write_rate: Bytes per second to storage, while training continues.
        tracking_seconds: Seconds of the one call per epoch, in the process that started the training.
        validate_every: Epochs between two validations.
        checkpoint_every: Epochs between two checkpoints.
        epochs: Epochs of a run.
        gpu_price: Dollars for an hour of a GPU with its share of a node.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    train_flops: float = 100e12
    images_per_gpu: int = 16
    gpus_per_node: int = 8
    nvlink: float = 360e9
    link_share: float = 0.8
    hop_seconds: float = 20e-6
    bucket_bytes: float = 25e6
    overlap: float = 2 / 3
    small_reduces: int = 3
    loader_processes: int = 8
    sample_seconds: Mapping[str, float] = field(default_factory=lambda: {"tiny": 12.5e-3, "p5": 15e-3, "p6": 53e-3})
    train_images: int = 118_287
    val_images: int = 5_000
    letterbox_seconds: Mapping[int, float] = field(default_factory=lambda: {640: 4e-3, 1280: 10e-3})
    suppression_seconds: float = 2e-3
    scoring_seconds: float = 1.0
    copy_rate: float = 10e9
    write_rate: float = 1e9
    tracking_seconds: float = 0.02
    validate_every: int = 1
    checkpoint_every: int = 1
    epochs: int = 300
    gpu_price: float = 3.0

    def images_per_second(self, model: Facts) -> float:
        """Return the rate of a GPU that never waits; a training step costs three forward passes."""
        return self.rates.get(model.name) or self.train_flops / (3 * model.forward_flops)

    def step_seconds(self, model: Facts) -> float:
        """Return the duration of a step of a GPU that never waits."""
        return self.images_per_gpu / self.images_per_second(model)

    def reduce_seconds(self, num_bytes: float, *, gpus: int, link: float) -> float:
        """Return the duration of an all-reduce: a ring within each node, then a ring between the nodes."""
        nodes, local = math.ceil(gpus / self.gpus_per_node), min(gpus, self.gpus_per_node)
        within = 2 * (local - 1) / local * num_bytes / self.nvlink
        between = 2 * (nodes - 1) / nodes * num_bytes / (link * self.link_share)
        return within + between + 2 * math.log2(gpus) * self.hop_seconds

    def gradient_seconds(self, model: Facts, *, gpus: int, link: float) -> float:
        """Return the duration of reducing all gradients of a step, bucket by bucket."""
        buckets = math.ceil(model.gradient_bytes / self.bucket_bytes)
        return buckets * self.reduce_seconds(model.gradient_bytes / buckets, gpus=gpus, link=link)

    def network_seconds(self, model: Facts, *, gpus: int, link: float) -> float:
        """Return how long a step waits for the network: at least for the last bucket and for small messages."""
        if gpus == 1:
            return 0.0
        all_buckets = self.gradient_seconds(model, gpus=gpus, link=link)
        last_bucket = all_buckets / math.ceil(model.gradient_bytes / self.bucket_bytes)
        small = self.small_reduces * self.reduce_seconds(64, gpus=gpus, link=link)
        statistics = self.reduce_seconds(model.buffer_bytes, gpus=gpus, link=link)
        return max(all_buckets - self.overlap * self.step_seconds(model), last_bucket) + small + statistics

    def validation_seconds(self, model: Facts, *, gpus: int) -> float:
        """Return the duration of a validation whose images are shared by all GPUs; each GPU scores all results."""
        forward = 1 / (3 * self.images_per_second(model))
        reading = self.letterbox_seconds[min(size for size in self.letterbox_seconds if size >= model.image_size)]
        image = reading + forward + self.suppression_seconds
        batches = math.ceil(self.val_images / self.images_per_gpu)
        return math.ceil(batches / gpus) * self.images_per_gpu * image + self.scoring_seconds

    def epoch(self, model: Facts, *, gpus: int, link: float) -> Epoch:
        """Return an epoch of COCO with its part of validations and checkpoints."""
        steps, step = math.ceil(self.train_images / (gpus * self.images_per_gpu)), self.step_seconds(model)
        network = self.network_seconds(model, gpus=gpus, link=link)
        recipe = "tiny" if "-tiny" in model.name else "p5" if model.image_size == 640 else "p6"
        loading = self.images_per_gpu * self.sample_seconds[recipe] / self.loader_processes
        loader = max(0.0, loading - step - network)
        between_checkpoints = steps * (step + network + loader) * self.checkpoint_every
        writing = max(0.0, model.checkpoint_bytes / self.write_rate - between_checkpoints)
        return Epoch(
            gpu=steps * step,
            loader=steps * loader,
            network=steps * network,
            validation=self.validation_seconds(model, gpus=gpus) / self.validate_every,
            checkpoint=(model.checkpoint_bytes / self.copy_rate + writing) / self.checkpoint_every,
        )


DEFAULTS = Assumptions()
TUNED = replace(  # settings only: decoded images are cached; validations and checkpoints are less frequent
    DEFAULTS,
    sample_seconds={"tiny": 5e-3, "p5": 6.5e-3, "p6": 29e-3},
    validate_every=10,
    checkpoint_every=10,
)


@cache
def facts(name: str) -> Facts:
    """Count the figures of a model, which is built on the meta device."""
    spec = load_spec(name)
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=80).eval()
        operations = count_operations(model, torch.empty(1, 3, spec.image_size, spec.image_size))
    parameters = count_parameters(model)
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return Facts(name, spec.image_size, parameters, state_bytes - 4 * parameters, 2.0 * operations.macs)


def tables(defaults: Assumptions = DEFAULTS, tuned: Assumptions = TUNED) -> dict[str, str]:
    """Return the tables of the page in Markdown by name.

    Args:
        defaults: Training with the default settings.
        tuned: Training with settings for many GPUs.
    """
    models = [facts(name) for name in MODELS]
    return {
        "models": _models_table(models, defaults),
        "network": _network_table(models, defaults),
        "epoch": _epoch_table(models, defaults, tuned),
        "fixed": _fixed_table(facts("yolov7"), defaults),
        "cost": _cost_table([facts(name) for name in (*MODELS, *BASELINES)], defaults),
    }


def _models_table(models: Iterable[Facts], assumed: Assumptions) -> str:
    head = ("variant", "size", "parameters", "gradients", "checkpoint", "GFLOPs per image", "images/s", "step")
    rows = [
        (
            model.name,
            str(model.image_size),
            f"{model.parameters / 1e6:.1f} M",
            f"{model.gradient_bytes / 1e6:.0f} MB",
            f"{model.checkpoint_bytes / 1e6:.0f} MB",
            f"{3 * model.forward_flops / 1e9:.0f}",
            f"{assumed.images_per_second(model):.0f}",
            f"{1e3 * assumed.step_seconds(model):.0f} ms",
        )
        for model in models
    ]
    return _markdown(head, rows)


def _network_table(models: Iterable[Facts], assumed: Assumptions) -> str:
    columns = {"8, NVLink": (8, LINKS["100G"])}
    columns |= {f"{gpus}, {name}": (gpus, link) for gpus in GPUS[2:] for name, link in LINKS.items()}
    rows = []
    for model in models:
        cells = [model.name]
        for gpus, link in columns.values():
            whole = 1e3 * assumed.gradient_seconds(model, gpus=gpus, link=link)
            cells.append(f"{whole:.1f} ({1e3 * assumed.network_seconds(model, gpus=gpus, link=link):.1f})")
        rows.append(cells)
    return _markdown(("ms per step", *columns), rows)


def _epoch_table(models: Iterable[Facts], defaults: Assumptions, tuned: Assumptions) -> str:
    rows = []
    for model in models:
        for gpus in GPUS:
            epoch, after = (assumed.epoch(model, gpus=gpus, link=LINKS["400G"]) for assumed in (defaults, tuned))
            rate = gpus * defaults.images_per_second(model)
            shares = [f"{seconds / epoch.total:.0%}" for seconds in astuple(epoch)]
            hours = [_hours(defaults.epochs * one.total / 3600) for one in (epoch, after)]
            rows.append((model.name, str(gpus), f"{rate:,.0f}", f"{epoch.total:,.0f} s", *shares, *hours))
    parts = ("GPU", "loader", "network", "validation", "checkpoint")
    return _markdown(("variant", "GPUs", "samples/s", "epoch", *parts, "run", "tuned"), rows)


def _cost_table(models: Iterable[Facts], assumed: Assumptions) -> str:
    """Return the table of a whole run of each model on one node, and of an evaluation of given weights on one GPU."""
    rows = []
    for model in models:
        hours = [
            assumed.epochs * assumed.epoch(model, gpus=gpus, link=LINKS["400G"]).total / 3600
            for gpus in (1, assumed.gpus_per_node)
        ]
        gpu_hours = assumed.gpus_per_node * hours[1]
        evaluation = 2 * assumed.validation_seconds(model, gpus=1) / 60  # before and after re-parameterisation
        rows.append(
            (
                model.name,
                str(model.image_size),
                *map(_hours, hours),
                f"{gpu_hours:,.0f}",
                f"{gpu_hours * assumed.gpu_price:,.0f}",
                f"{2 * model.checkpoint_bytes / 1e9:.1f} GB",
                f"{evaluation:.1f} min",
            )
        )
    head = ("variant", "size", "1 GPU", "8 GPUs", "GPU hours", "US dollars", "checkpoints", "evaluation")
    return _markdown(head, rows)


def _hours(hours: float) -> str:
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _fixed_table(model: Facts, assumed: Assumptions, *, batch: int = 128) -> str:
    """Return the table of one batch on different numbers of GPUs, with images from files and a link of 400 Gbit/s."""
    rows = []
    for gpus in (8, 16, 32, 64, 128):
        part = replace(assumed, images_per_gpu=batch // gpus)
        compute, network = part.step_seconds(model), part.network_seconds(model, gpus=gpus, link=LINKS["400G"])
        cells = (str(gpus), str(part.images_per_gpu), f"{1e3 * compute:.0f} ms", f"{1e3 * network:.1f} ms")
        rows.append((*cells, f"{batch / (compute + network):,.0f}", f"{compute / (compute + network):.0%}"))
    return _markdown(("GPUs", "images per GPU", "GPU", "network", "images/s", "share of the GPU"), rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def renewed(page: str, found: Mapping[str, str]) -> str:
    """Return a page with new tables between `<!-- table NAME -->` and `<!-- end -->`.

    Args:
        page: The content of the page.
        found: The tables by name.
    """

    def table(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{found[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def _rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    if name not in MODELS:
        raise argparse.ArgumentTypeError(f"{name!r} must be one of {', '.join(MODELS)}")
    return name, float(rate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compute what limits training on many GPUs.")
    parser.add_argument("page", nargs="?", type=Path, help="a page whose tables are renewed")
    parser.add_argument(
        "--rate", action="append", default=[], type=_rate, metavar="VARIANT=RATE", help="measured images/s of one GPU"
    )
    given = parser.parse_args(arguments)
    rates = dict(given.rate)
    found = tables(replace(DEFAULTS, rates=rates), replace(TUNED, rates=rates))
    if given.page is None:
        print("\n\n".join(found.values()))
    else:
        given.page.write_text(renewed(given.page.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
