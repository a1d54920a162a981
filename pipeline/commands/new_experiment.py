"""The command `new`: look at a data set, and write an experiment with settings for it, each with its reason."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import yaml

from pipeline.commands.experiments import FOLDER
from pipeline.experiment import find_weights, parse_experiment
from yolov7.data.annotations import is_in_shares
from yolov7.data.find_data import FoundData, files_of_split, find_data, parse_split
from yolov7.data.image_headers import read_header
from yolov7.data.images import read_content
from yolov7.errors import ArtifactError, DataError, SettingError, counted, shown
from yolov7.settings import TrainSettings
from yolov7.spec.anchor_free import with_anchor_free_head
from yolov7.spec.graph import ModelSpec, check_image_size, largest_stride
from yolov7.spec.spec_files import list_specs, load_spec
from yolov7.system.files import write_whole
from yolov7.training.data_recipe import NAME, DataFacts, fit_to_data
from yolov7.weights.description import describe_weights
from yolov7.weights.foreign.reference import open_weights

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SIZES = (320, 416, 512, 640, 960, 1280)
_SMALLEST = 16  # pixels: two cells of the finest maps, whose stride is 8
_SMALL_SHARE = 0.1  # of the boxes that may be smaller
_VAL_SHARE = 0.2  # of the training images, if there is no validation split
_FEWEST_TO_DIVIDE = 2  # images with boxes: one for training and one for validation
_SAMPLE = 500  # images whose headers are read
_MEMORY_SHARE = 0.5
_HEADS = {"detect_dfl": "anchor_free", "detect_one_to_one": "one_to_one"}  # blocks of heads and the values of `head`
_LARGE_GPU = 14 * 2**30  # bytes of memory with which yolov7 is trained in batches of 8 and more


@dataclass(frozen=True)
class _Facts:
    """What is known of the training data: the number of images, and sides in pixels.

    Attributes:
        images: The number of training images.
        objects: The number of their objects.
        annotated: The number of training images with a box that can be learned.
        classes: The number of classes.
        longer_side: The median of the longer sides of the images.
        shares: (m,) the shorter side of each box as a share of the longer side of its image.
    """

    images: int
    objects: int
    annotated: int
    classes: int
    longer_side: int
    shares: np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True)
class _Choice:
    value: str
    reason: str


def new_experiment(
    name: str, *, data: Path, weights: Path | None = None, size: int | None = None, force: bool = False
) -> list[str]:
    """Write experiments/NAME.yaml for a data set.

    Args:
        name: The name of the experiment.
        data: The folder of the data set, a data.yaml or a COCO file.
        weights: Weights to fine-tune, a file or a name of published weights; None to train from scratch.
        size: The side of the training images in pixels; None to choose it from the sizes of the boxes.
        force: Whether an existing file is replaced.

    Returns:
        Lines that say what was found, which settings were chosen and why.

    Raises:
        SettingError: If the name cannot be used, the file exists, or the size does not fit the model.
        DataError: If no data are found.
        ArtifactError: If the weights cannot be used.
    """
    path = FOLDER / f"{name}.yaml"
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"name={shown(name)} must consist of letters, digits, '_' and '-', and begin with a letter or digit"
        )
    if path.exists() and not force:
        raise SettingError(f"{path} exists; choose another name, or pass --force to replace it")
    found = find_data(data)
    text, facts = describe_experiment(found, named=data, weights=weights, size=size)
    parse_experiment(yaml.safe_load(text), source=str(path))
    write_whole(path, text.encode())
    return [f"found {found.description}", facts, "", text.rstrip(), "", f"wrote {path}; next: yolov7 use {name}"]


def describe_experiment(found: FoundData, *, named: Path, weights: Path | None, size: int | None) -> tuple[str, str]:
    """Return the text of an experiment, and a line about the data.

    Args:
        found: The data set.
        named: How the user named it.
        weights: As in `new_experiment`.
        size: As in `new_experiment`.

    Raises:
        DataError: If the training split cannot be used.
        ArtifactError: If the weights cannot be used.
    """
    settings = _data_settings(found, named)
    facts = _look_at(found, str(yaml.safe_load(settings["train"].value)))
    _check_boxes(facts, found, is_divided="split" in settings)
    spec, model = _choose_model(weights)
    image_size = _choose_size(facts, spec, size)
    train = {
        **({} if weights is None else {"weights": _Choice(_quoted(weights), "training starts from these weights")}),
        "recipe": _Choice(NAME, "other settings follow from the training data; a key that is stated here has priority"),
        "image_size": image_size,
    }
    images = round(facts.images * (1 - _VAL_SHARE)) if "split" in settings else facts.images
    batch, reasons = _choose_rest(spec, int(image_size.value), DataFacts(max(1, images), facts.shares), weights=weights)
    train |= batch
    title = f"Made by `yolov7 new` for {counted(facts.images, 'training image')} in {found.root.name or found.root}."
    sections = {"data": settings, "variants": {"model": model}, "train": train}
    lines = [f"# {title.encode(errors='replace').decode()}"]
    for section, choices in sections.items():
        lines += [*(["seeds: [0]", ""] if section == "variants" else []), f"{section}:"]
        lines += [f"  {key}: {choice.value}    # {choice.reason}" for key, choice in choices.items()] + [""]
    lines += [f"# With {counted(images, 'training image')}, the recipe chooses:"]
    lines += [*(f"#   {reason}" for reason in reasons), ""]
    what = (
        f"{counted(facts.images, 'training image')} with {counted(facts.objects, 'object')}; classes: {facts.classes}"
    )
    return "\n".join(lines), what


def _data_settings(found: FoundData, named: Path) -> dict[str, _Choice]:
    splits = dict(found.splits)
    train = next((key for key in ("train", "trainval") if key in splits), next(iter(splits), "train"))
    source = splits.pop(train, train)
    place = named if named.is_file() and found.format == "yolo" else found.root
    if found.format == "yolo" and not named.is_file() and found.file is not None:
        place = found.file.parent.parent if found.file.parent.name == "labels" else found.file.parent
    val, test = splits.get("val"), splits.get("test")
    chosen = {
        "format": _Choice(found.format, "recognised by the files"),
        "path": _Choice(_quoted(place), "the folder is not changed"),
        "train": _Choice(_quoted(source), "the training split"),
    }
    for split in {"val", "test"} & splits.keys():
        for _ in islice(files_of_split(found, split), 2):  # raises an error if a data.yaml names what does not exist
            pass
    if val is not None:
        chosen["val"] = _Choice(_quoted(val), "AP is measured on it during training")
    else:
        reason = "the data have no validation split; images that look alike stay together"
        chosen["split"] = _Choice(f"{{val: {_VAL_SHARE}, seed: 0, group: near-duplicates}}", reason)
    if test is not None:
        chosen["test"] = _Choice(_quoted(test), "`evaluate` measures it once, after training")
    return chosen


def _look_at(found: FoundData, source: str) -> _Facts:
    """Read the annotations of the training split, and the headers of some of its images."""
    parsed = parse_split(found, source)
    annotations = parsed.annotations
    count = len(annotations.paths)
    step = max(1, count // _SAMPLE)
    sizes = np.full((count, 2), np.nan)
    for image in islice(range(0, count, step), _SAMPLE):
        try:
            header = read_header(read_content(annotations.paths[image]))
        except DataError:
            continue
        if header is not None:
            sizes[image] = header.width, header.height
    known = ~np.isnan(sizes[:, 0])
    if not known.any():
        raise DataError(f"none of the first images of {found.description} can be read; restore them")
    frame = np.where(is_in_shares(annotations)[:, None], sizes[annotations.image], 1.0)
    sides = (annotations.boxes_xywh[:, 2:] * frame).min(axis=1, initial=np.inf)
    shares = sides / sizes[annotations.image].max(axis=1, initial=0)
    shares = shares[np.isfinite(shares) & (shares > 0) & ~annotations.crowd]
    longer = int(np.median(sizes[known].max(axis=1)))
    usable = (annotations.boxes_xywh[:, 2:] > 0).all(axis=1) & ~annotations.crowd
    annotated = len(np.unique(annotations.image[usable]))
    return _Facts(count, len(annotations.labels), annotated, len(parsed.class_names), longer, shares)


def _check_boxes(facts: _Facts, found: FoundData, *, is_divided: bool) -> None:
    """Raise DataError if there is nothing to learn, or too little to divide into training and validation."""
    if not facts.annotated:
        what = f"{counted(facts.images, 'training image')} with {counted(facts.objects, 'object')}"
        reason = "; boxes need an area and must not be crowd regions" if facts.objects else ""
        raise DataError(
            f"there is no box to learn in {found.description} ({what}{reason}); annotate objects, or name other data"
        )
    if is_divided and facts.annotated < _FEWEST_TO_DIVIDE:
        raise DataError(
            f"only {counted(facts.annotated, 'image')} of {found.description} has a box, but {_FEWEST_TO_DIVIDE} are "
            "needed without a validation split: one to train with and one to measure AP; add images with boxes, or a "
            "validation split"
        )


def _choose_model(weights: Path | None) -> tuple[ModelSpec, _Choice]:
    """Return the chosen model, and the line of the file that states it."""
    if weights is not None:
        return _model_of(weights)
    memory = _gpu_memory()
    if memory is not None and memory >= _LARGE_GPU:
        name = "yolov7"
        size = f"the GPU has {memory / 2**30:.0f} GiB; yolov7-tiny is several times faster"
    else:
        name = "yolov7-tiny"
        where = "there is no GPU" if memory is None else f"the GPU has {memory / 2**30:.0f} GiB"
        size = f"{where}; yolov7 is more exact and several times slower"
    head = "without `head`, the model has anchors, is faster, and needs more steps"
    return with_anchor_free_head(load_spec(name)), _Choice(f"{{spec: {name}, head: anchor_free}}", f"{size}; {head}")


def _model_of(weights: Path) -> tuple[ModelSpec, _Choice]:
    """Return the model of a weight file, and the line of the file that states it."""
    path = find_weights(str(weights))
    if not path.is_file():
        raise ArtifactError(f"{weights} is missing; name a weight file")
    described = describe_weights(path)
    spec = open_weights(path, spec=None).model.spec if described is None else described.spec
    if spec.name not in list_specs():
        raise ArtifactError(f"{weights} has the model {spec.name!r}, which is no packaged spec; write the file by hand")
    is_replaced = spec.head.block != load_spec(spec.name).head.block
    head = f", head: {_HEADS[spec.head.block]}" if is_replaced and spec.head.block in _HEADS else ""
    return spec, _Choice(f"{{spec: {spec.name}{head}}}", "the model of the weights")


def _choose_size(facts: _Facts, spec: ModelSpec, size: int | None) -> _Choice:
    stride = largest_stride(spec)
    if size is not None:
        check_image_size(spec, size, what=f"--size={size}")
        return _Choice(str(size), "as --size states")
    sizes = [one for one in _SIZES if one % stride == 0]
    own = math.ceil(facts.longer_side / stride) * stride
    sizes = [one for one in sizes if one <= own] or sizes[:1]
    if not len(facts.shares):
        return _Choice(str(min(640, sizes[-1])), "no box has a known size")
    share = float(np.quantile(facts.shares, _SMALL_SHARE))
    chosen = next((one for one in sizes if one * share >= _SMALLEST), sizes[-1])
    end = "" if chosen * share >= _SMALLEST else "; larger images would not show more"
    return _Choice(
        str(chosen), f"90% of the boxes are then at least {chosen * share:.0f} pixels wide and high (stride 8){end}"
    )


def _choose_rest(
    spec: ModelSpec, image_size: int, facts: DataFacts, *, weights: Path | None
) -> tuple[dict[str, _Choice], tuple[str, ...]]:
    """Return a batch size if that of the recipe needs too much memory, and what the recipe chooses."""
    given = {"recipe": NAME, "image_size": image_size, "weights": weights}
    fitted = fit_to_data(TrainSettings.model_validate(given), facts)
    memory, each = _gpu_memory() or _free_memory(), _training_bytes(spec, image_size)
    batch = largest = fitted.settings.batch_size
    while largest > 1 and largest * each > _MEMORY_SHARE * memory:
        largest //= 2
    if largest == batch:
        return {}, fitted.reasons
    need, has = batch * each / 2**30, memory / 2**30
    reason = f"{batch} images would need about {need:.1f} of {has:.0f} GiB"
    reasons = fit_to_data(TrainSettings.model_validate({**given, "batch_size": largest}), facts).reasons
    return {"batch_size": _Choice(str(largest), reason)}, reasons


def _quoted(value: object) -> str:
    """Return a text for a line of YAML; quotes keep `2017` and `no` text."""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {text!r} is not UTF-8; rename the folder or file") from None
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def _gpu_memory() -> int | None:
    """Return the memory of the first GPU in bytes; None if there is no GPU."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _free_memory() -> int:
    """Return the bytes of memory that are free on this machine, and in its control group if that is limited."""
    from yolov7.data.cache import available_memory

    return available_memory()


def _training_bytes(spec: ModelSpec, image_size: int) -> int:
    """Estimate the memory that training needs for one image: all values that are kept for the backward pass."""
    import torch

    from yolov7.nn.model import DetectionModel

    kept = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[0] += 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel() * tensor.element_size()
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        DetectionModel(spec, num_classes=80).train()(torch.empty(1, 3, image_size, image_size))
    return kept[0]
