"""What bounds a training on many GPUs, computed from the specs: the tables of docs/design/scaling-out.md.

`python -m docs.design.scaling_out` prints them, `... PAGE` renews those of a page, `--rate yolov7=410` gives a measured rate.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from yolov7.nn.cost import count_operations, count_parameters
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec

MODELS = ("yolov7-tiny", "yolov7", "yolov7x", "yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e")
GPUS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Facts:
    """Of a model as it is trained, all branches and the auxiliary head included."""

    name: str
    image_size: int
    parameters: int
    buffer_bytes: int  # batch norm's statistics
    forward_flops: float  # an image

    @property
    def gradient_bytes(self) -> int:
        """What an all-reduce sums up: float32, whatever the precision of the forward pass."""
        return 4 * self.parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, their average, SGD's momentum; the statistics twice."""
        return 3 * self.gradient_bytes + 2 * self.buffer_bytes


@dataclass(frozen=True)
class Link:
    """What leaves a node: bytes a second in each direction."""

    name: str
    bytes_per_second: float


LINKS = (Link("100G", 100e9 / 8), Link("400G", 400e9 / 8), Link("8 x 400G", 8 * 400e9 / 8))


@dataclass(frozen=True)
class Assumptions:
    """All that is not counted on the models; the page says which of them were measured."""

    rates: Mapping[str, float] = field(default_factory=dict)  # images a second of a GPU, where they were measured
    train_flops: float = 100e12  # a second, that a GPU reaches in training where no rate was measured
    images_per_gpu: int = 16  # a step
    gpus_per_node: int = 8
    nvlink: float = 360e9  # bytes a second of an all-reduce within a node
    link_share: float = 0.8  # of a link's rate that is reached
    hop_seconds: float = 20e-6  # of one message between two GPUs
    bucket_bytes: float = 25e6  # DDP sums up gradients in parts of this size
    overlap: float = 2 / 3  # share of a step, the backward pass, beside which gradients travel
    small_reduces: int = 3  # a step: matches and images; losses and whether they are finite; stop or save
    loader_processes: int = 8  # for each GPU; `loader_workers: auto` takes no more
    sample_seconds: Mapping[str, float] = field(default_factory=lambda: {"tiny": 12.5e-3, "p5": 15e-3, "p6": 53e-3})
    train_images: int = 118_287
    val_images: int = 5_000
    letterbox_seconds: Mapping[int, float] = field(default_factory=lambda: {640: 4e-3, 1280: 10e-3})
    suppression_seconds: float = 2e-3  # an image
    scoring_seconds: float = 1.0  # COCO figures of the whole split
    copy_rate: float = 10e9  # bytes a second from the GPU, while training waits
    write_rate: float = 1e9  # bytes a second to storage, beside the training
    tracking_seconds: float = 0.02  # one call an epoch, in the process that started the training
    validate_every: int = 1  # epochs
    checkpoint_every: int = 1
    epochs: int = 300


AS_IT_IS = Assumptions()
TUNED = replace(  # by settings: decoded images are kept; validations and checkpoints are rarer
    AS_IT_IS,
    sample_seconds={"tiny": 5e-3, "p5": 6.5e-3, "p6": 29e-3},
    validate_every=10,
    checkpoint_every=10,
)


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch by what they are spent on."""

    gpu: float
    loader: float  # that the GPUs wait for
    network: float
    evaluation: float
    checkpoint: float

    @property
    def total(self) -> float:
        return self.gpu + self.loader + self.network + self.evaluation + self.checkpoint


@cache
def facts(name: str) -> Facts:
    """Counted on the model, which is built on the meta device."""
    spec = load_spec(name)
    with torch.device("meta"):
        model = DetectionModel(spec, num_classes=80).eval()
        operations = count_operations(model, torch.empty(1, 3, spec.image_size, spec.image_size))
    parameters = count_parameters(model)
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return Facts(
        name=name,
        image_size=spec.image_size,
        parameters=parameters,
        buffer_bytes=state_bytes - 4 * parameters,
        forward_flops=2.0 * operations.macs,
    )


def images_per_second(model: Facts, assumed: Assumptions) -> float:
    """Of one GPU that waits for nothing; forward and backward pass are three forward passes."""
    return assumed.rates.get(model.name) or assumed.train_flops / (3 * model.forward_flops)


def reduce_seconds(num_bytes: float, *, gpus: int, link: Link, assumed: Assumptions) -> float:
    """One all-reduce: a ring within each node, then one between nodes to which each of its GPUs adds its part."""
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    local = min(gpus, assumed.gpus_per_node)
    within = 2 * (local - 1) / local * num_bytes / assumed.nvlink
    between = 2 * (nodes - 1) / nodes * num_bytes / (link.bytes_per_second * assumed.link_share)
    return within + between + 2 * math.log2(gpus) * assumed.hop_seconds


def gradient_seconds(model: Facts, *, gpus: int, link: Link, assumed: Assumptions) -> float:
    """All gradients, bucket by bucket."""
    buckets = math.ceil(model.gradient_bytes / assumed.bucket_bytes)
    bucket = model.gradient_bytes / buckets
    return buckets * reduce_seconds(bucket, gpus=gpus, link=link, assumed=assumed)


def network_seconds(model: Facts, *, gpus: int, link: Link, assumed: Assumptions) -> float:
    """Of a step, what the backward pass does not hide: the last bucket or more of the gradients, and what is small."""
    if gpus == 1:
        return 0.0
    whole = gradient_seconds(model, gpus=gpus, link=link, assumed=assumed)
    last = whole / math.ceil(model.gradient_bytes / assumed.bucket_bytes)
    compute = assumed.images_per_gpu / images_per_second(model, assumed)
    small = assumed.small_reduces * reduce_seconds(64, gpus=gpus, link=link, assumed=assumed)
    statistics = reduce_seconds(model.buffer_bytes, gpus=gpus, link=link, assumed=assumed)
    return max(whole - assumed.overlap * compute, last) + small + statistics


def epoch_of(model: Facts, *, gpus: int, link: Link, assumed: Assumptions) -> Epoch:
    """An epoch of COCO, the validation and the checkpoint that fall to it included."""
    steps = math.ceil(assumed.train_images / (gpus * assumed.images_per_gpu))
    compute = assumed.images_per_gpu / images_per_second(model, assumed)
    network = network_seconds(model, gpus=gpus, link=link, assumed=assumed)
    loading = assumed.images_per_gpu * _sample_seconds(model, assumed) / assumed.loader_processes
    loader = max(0.0, loading - compute - network)
    training = steps * (compute + network + loader)
    return Epoch(
        gpu=steps * compute,
        loader=steps * loader,
        network=steps * network,
        evaluation=evaluation_seconds(model, gpus=gpus, assumed=assumed) / assumed.validate_every,
        checkpoint=_checkpoint_seconds(model, assumed, meanwhile=training * assumed.checkpoint_every),
    )


def evaluation_seconds(model: Facts, *, gpus: int, assumed: Assumptions) -> float:
    """One validation; all processes share its images, read them themselves, and score all that was found."""
    forward = 1 / (3 * images_per_second(model, assumed))
    image = assumed.letterbox_seconds[model.image_size] + forward + assumed.suppression_seconds
    batches = math.ceil(assumed.val_images / assumed.images_per_gpu)
    return math.ceil(batches / gpus) * assumed.images_per_gpu * image + assumed.scoring_seconds


def tracking_share(epoch: Epoch, assumed: Assumptions) -> float:
    """Of the time of the process that started the training; no worker waits for it."""
    return assumed.tracking_seconds / epoch.total


def _checkpoint_seconds(model: Facts, assumed: Assumptions, *, meanwhile: float) -> float:
    """Training waits for the copy, and where the checkpoint before is not written yet, for that."""
    writing = max(0.0, model.checkpoint_bytes / assumed.write_rate - meanwhile)
    return (model.checkpoint_bytes / assumed.copy_rate + writing) / assumed.checkpoint_every


def _sample_seconds(model: Facts, assumed: Assumptions) -> float:
    recipe = "tiny" if model.name == "yolov7-tiny" else "p5" if model.image_size == 640 else "p6"
    return assumed.sample_seconds[recipe]


def tables(assumed: Assumptions = AS_IT_IS, tuned: Assumptions = TUNED) -> dict[str, str]:
    """The page's tables in Markdown, by their names."""
    models = [facts(name) for name in MODELS]
    return {
        "models": _models_table(models, assumed),
        "network": _network_table(models, assumed),
        "epoch": _epoch_table(models, assumed, tuned),
        "fixed": _fixed_table(facts("yolov7"), assumed),
    }


def _models_table(models: Iterable[Facts], assumed: Assumptions) -> str:
    head = ("variant", "size", "parameters", "gradients", "checkpoint", "GFLOPs an image", "images/s", "step")
    return _markdown(
        head,
        [
            (
                model.name,
                str(model.image_size),
                f"{model.parameters / 1e6:.1f} M",
                f"{model.gradient_bytes / 1e6:.0f} MB",
                f"{model.checkpoint_bytes / 1e6:.0f} MB",
                f"{3 * model.forward_flops / 1e9:.0f}",
                f"{images_per_second(model, assumed):.0f}",
                f"{1e3 * assumed.images_per_gpu / images_per_second(model, assumed):.0f} ms",
            )
            for model in models
        ],
    )


def _network_table(models: Iterable[Facts], assumed: Assumptions) -> str:
    columns = [(GPUS[1], LINKS[0]), *((gpus, link) for gpus in GPUS[2:] for link in LINKS)]
    head = ["8, NVLink", *(f"{gpus}, {link.name}" for gpus, link in columns[1:])]
    rows = [
        (model.name, *(_whole_and_seen(model, gpus=gpus, link=link, assumed=assumed) for gpus, link in columns))
        for model in models
    ]
    return _markdown(["ms a step", *head], rows)


def _whole_and_seen(model: Facts, *, gpus: int, link: Link, assumed: Assumptions) -> str:
    whole = gradient_seconds(model, gpus=gpus, link=link, assumed=assumed)
    seen = network_seconds(model, gpus=gpus, link=link, assumed=assumed)
    return f"{1e3 * whole:.1f} ({1e3 * seen:.1f})"


def _epoch_table(models: Iterable[Facts], assumed: Assumptions, tuned: Assumptions) -> str:
    parts = ("gpu", "loader", "network", "evaluation", "checkpoint")
    rows = []
    for model in models:
        for gpus in GPUS:
            epoch = epoch_of(model, gpus=gpus, link=LINKS[1], assumed=assumed)
            rate, shares = (
                gpus * images_per_second(model, assumed),
                [getattr(epoch, part) / epoch.total for part in parts],
            )
            hours = [_hours(model, gpus=gpus, assumed=how) for how in (assumed, tuned)]
            cells = (model.name, str(gpus), f"{rate:,.0f}", f"{epoch.total:,.0f} s")
            rows.append((*cells, *(f"{share:.0%}" for share in shares), *hours))
    head = ("variant", "GPUs", "samples/s", "epoch", "GPU", *parts[1:], "run", "tuned")
    return _markdown(head, rows)


def _hours(model: Facts, *, gpus: int, assumed: Assumptions) -> str:
    epoch = epoch_of(model, gpus=gpus, link=LINKS[1], assumed=assumed)
    hours = assumed.epochs * epoch.total / 3600
    return f"{hours:.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _fixed_table(model: Facts, assumed: Assumptions, *, batch: int = 128) -> str:
    """One batch whatever the number of GPUs, from files, over 400G."""
    rows = []
    for gpus in (8, 16, 32, 64, 128):
        part = replace(assumed, images_per_gpu=batch // gpus)
        compute = part.images_per_gpu / images_per_second(model, part)
        network = network_seconds(model, gpus=gpus, link=LINKS[1], assumed=part)
        step = compute + network
        cells = (str(gpus), str(part.images_per_gpu), f"{1e3 * compute:.0f} ms", f"{1e3 * network:.1f} ms")
        rows.append((*cells, f"{batch / step:,.0f}", f"{compute / step:.0%}"))
    return _markdown(("GPUs", "images each", "GPU", "network", "images/s", "of the time on the GPU"), rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def renewed(page: str, found: Mapping[str, str]) -> str:
    """The page with these tables between `<!-- table NAME -->` and `<!-- end -->`."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{found[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def _rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    if name not in MODELS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MODELS)}")
    return name, float(rate)


def main(arguments: Sequence[str] | None = None, *, show: Callable[[str], None] = print) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.design.scaling_out", description="What bounds a training at scale."
    )
    parser.add_argument("page", nargs="?", type=Path, help="a page whose tables are renewed")
    parser.add_argument("--rate", action="append", default=[], type=_rate, help="VARIANT=images/s of one GPU, measured")
    given = parser.parse_args(arguments)
    rates = dict(given.rate)
    found = tables(replace(AS_IT_IS, rates=rates), replace(TUNED, rates=rates))
    if given.page is None:
        show("\n\n".join(found.values()))
    else:
        given.page.write_text(renewed(given.page.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
