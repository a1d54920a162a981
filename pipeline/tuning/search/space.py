"""The candidates of a search, and the models that it may train.

The models are scaled from one base, and their cost is counted before any training.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import log2
from typing import NamedTuple

from pipeline.tune_settings import TuneRule, TuneSettings
from yolov7.errors import SpecError
from yolov7.nn.cost import Cost
from yolov7.spec.auxiliary import with_auxiliary, without_auxiliary
from yolov7.spec.block_schema import ComputationalRow, DoubleRow, ElanRow, HeadRow, UpRow, UpsampleRow
from yolov7.spec.graph import ModelSpec, infer_shapes
from yolov7.spec.scaling import Rule, scale_spec
from yolov7.spec.spec_files import spec_to_json

DEPTHS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # factors on the depth of each part of a model
WIDTHS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 1.75, 2.0)
_RULES: Mapping[TuneRule, Rule] = {"compound": "compound", "width": "width", "depth": "depth", "free": "both"}
_DRAWS = 20  # attempts for each wanted model, because different factors may give the same model

CostOf = Callable[[ModelSpec, int], Cost]  # counts the cost of a spec at an image size in pixels


class Choice(NamedTuple):
    """One way to scale the base.

    Attributes:
        rule: The scaling rule.
        depths: A factor on the depth of each part of the base, in the order of `list_parts`.
        width: The factor on all widths; the rule "compound" derives the width from the depths instead.
        image_size: Side of the images, pixels.
        auxiliary: Whether the model is trained with an auxiliary head.
    """

    rule: TuneRule
    depths: tuple[float, ...]
    width: float
    image_size: int
    auxiliary: bool


@dataclass(frozen=True)
class Candidate:
    """A model that a search may train, or settings with which it may train the base.

    Attributes:
        key: Eight hexadecimal digits that identify the candidate, see `model_key`.
        label: How the model was scaled, or which settings differ from the stated ones, for people.
        rules: All rules that can make this model; `STATED` for the stated settings, none for other settings.
        spec_json: The spec of the model.
        image_size: Side of the images, pixels.
        auxiliary: Whether the model is trained with an auxiliary head.
        features: Names and values that describe the candidate to a sampler.
        gflops: GFLOPs of the deployed model, counted as in the paper.
        training_gflops: GFLOPs of one forward pass of the model as it is trained.
        parameters: Number of parameters as it is trained.
        parameters_deployed: Number of parameters after re-parameterisation.
        train: The varied settings of the training with their values; empty if models are searched.
    """

    key: str
    label: str
    rules: tuple[str, ...]
    spec_json: str
    image_size: int
    auxiliary: bool
    features: tuple[tuple[str, float], ...]
    gflops: float
    training_gflops: float
    parameters: int
    parameters_deployed: int
    train: tuple[tuple[str, float], ...] = ()

    def training_flop(self, images: int) -> float:
        """Return the floating point operations of training on a number of images.

        A backward pass costs twice as much as a forward pass.
        """
        return 3e9 * self.training_gflops * images


def list_parts(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    """List the parts of a model that have a depth of their own: each stage of the backbone, the neck, and the head.

    The neck starts with the first upsampled feature map, the head with the first one that is downsampled again.

    Returns:
        The names of the computational blocks of each part.
    """
    shapes, parts, section = infer_shapes(spec), dict[str, list[str]](), "backbone"
    for name, row in spec.rows.items():
        if isinstance(row, UpRow | UpsampleRow | DoubleRow):
            section = "neck"
        elif section == "neck" and shapes[name].stride > shapes[row.sources[0]].stride:
            section = "head"
        if isinstance(row, ComputationalRow):
            parts.setdefault(name if section == "backbone" else section, []).append(name)
    return {part: tuple(rows) for part, rows in parts.items()}


def build_model(base: ModelSpec, choice: Choice) -> ModelSpec:
    """Return the spec of a choice."""
    depth = {row: factor for rows, factor in zip(list_parts(base).values(), choice.depths, strict=True) for row in rows}
    spec = base
    if choice.rule == "width":
        spec = scale_spec(base, rule="width", width=choice.width)
    elif depth:
        spec = scale_spec(base, rule=_RULES[choice.rule], depth=depth, width=choice.width)
    return with_auxiliary(spec) if choice.auxiliary else without_auxiliary(spec)


def draw_candidates(
    base: ModelSpec,
    settings: TuneSettings,
    *,
    image_sizes: tuple[int, ...],
    auxiliary: tuple[bool, ...],
    cost_of: CostOf,
    generator: random.Random,
) -> tuple[Candidate, ...]:
    """Draw different models for each rule: first the family with one common factor, then random ones.

    Args:
        base: The spec that is scaled.
        settings: Which rules to use, and how many models to draw for each of them.
        image_sizes: Image sizes to choose from, pixels; the family uses the first one.
        auxiliary: Whether to train with an auxiliary head: the options to choose from; the family uses the first one.
        cost_of: Counts the cost of a spec.
        generator: Source of randomness.

    Returns:
        At most `settings.candidates` models for each rule. A model that several rules can make occurs once.

    Raises:
        SpecError: If the base has no blocks whose depth a rule could scale.
    """
    needing_depth = [rule for rule in settings.rules if rule != "width"]
    if needing_depth and not list_parts(base):
        raise SpecError(
            f"rule {needing_depth[0]} scales the depth of blocks, but base {base.name!r} has none; try --rule width"
        )
    found: dict[str, Candidate] = {}
    for rule in settings.rules:
        by_rule: set[str] = set()
        choices = _choices(rule, len(list_parts(base)), image_sizes, auxiliary, generator)
        for _, choice in zip(range(_DRAWS * settings.candidates), choices, strict=False):
            if len(by_rule) >= settings.candidates:
                break
            spec = build_model(base, choice)
            key = model_key(spec, choice.image_size)
            by_rule.add(key)
            if key not in found:
                found[key] = _candidate(base, spec, choice, key=key, cost=cost_of(spec, choice.image_size))
            elif rule not in found[key].rules:
                found[key] = replace(found[key], rules=(*found[key].rules, rule))
    return tuple(found.values())


def model_key(spec: ModelSpec, image_size: int) -> str:
    """Return eight hexadecimal digits that are equal for choices that train the same model."""
    rows = json.loads(spec_to_json(spec))["rows"]
    return hashlib.sha256(json.dumps([rows, spec.activation, image_size]).encode()).hexdigest()[:8]


def _choices(
    rule: TuneRule, parts: int, sizes: tuple[int, ...], auxiliary: tuple[bool, ...], generator: random.Random
) -> Iterator[Choice]:
    """Yield the family with one common factor, then random choices without end."""
    for factor in WIDTHS if rule == "width" else DEPTHS:
        depth, width = (1.0, factor) if rule == "width" else (factor, 1.0)
        yield Choice(rule, (depth,) * parts, width, sizes[0], auxiliary[0])
    while True:
        depths = (1.0,) * parts if rule == "width" else tuple(_drawn_depths(parts, generator))
        width = generator.choice(WIDTHS) if rule in ("width", "free") else 1.0
        yield Choice(rule, depths, width, generator.choice(sizes), generator.choice(auxiliary))


def _drawn_depths(parts: int, generator: random.Random) -> Iterator[float]:
    """Yield depths around a common factor, so that models of every cost are drawn and not only average ones."""
    centre = generator.randrange(len(DEPTHS))
    for _ in range(parts):
        yield DEPTHS[min(max(centre + generator.choice((-1, 0, 0, 1)), 0), len(DEPTHS) - 1)]


def base_candidate(spec: ModelSpec, *, image_size: int, cost_of: CostOf) -> Candidate:
    """Return a model that is not scaled.

    Args:
        spec: The model.
        image_size: Side of the images, pixels.
        cost_of: Counts the cost of a spec.
    """
    choice = Choice("width", (), 1.0, image_size, bool(spec.head.taps))
    return _candidate(spec, spec, choice, key=model_key(spec, image_size), cost=cost_of(spec, image_size))


def _candidate(base: ModelSpec, spec: ModelSpec, choice: Choice, *, key: str, cost: Cost) -> Candidate:
    return Candidate(
        key=key,
        label=_label(base, choice),
        rules=(choice.rule,),
        spec_json=spec_to_json(spec),
        image_size=choice.image_size,
        auxiliary=choice.auxiliary,
        features=tuple(_features(base, spec, choice).items()),
        gflops=cost.gflops_with_bias,
        training_gflops=cost.gflops_built,
        parameters=cost.parameters,
        parameters_deployed=cost.parameters_deployed,
    )


def _label(base: ModelSpec, choice: Choice) -> str:
    """Return a label such as `compound p2 1.5, neck 2`."""
    if choice.rule == "width" or not choice.depths:
        changed = [f"{choice.width:g}"]
    elif len(set(choice.depths)) == 1:
        changed = [f"{choice.depths[0]:g}"]
    else:
        named = zip(list_parts(base), choice.depths, strict=True)
        changed = [f"{part} {depth:g}" for part, depth in named if depth != 1]
    changed += [f"width {choice.width:g}"] * (choice.rule == "free" and choice.width != 1)
    return f"{choice.rule} {', '.join(changed)}" + " with auxiliary head" * choice.auxiliary


def _features(base: ModelSpec, spec: ModelSpec, choice: Choice) -> dict[str, float]:
    """Describe the resulting model: depths, mean growth of the widths in doublings, image size, auxiliary head."""
    depths = {name: float(row.depth) for name, row in spec.rows.items() if isinstance(row, ComputationalRow)}
    old, new = infer_shapes(base), infer_shapes(spec)
    names = [name for name, row in spec.rows.items() if not isinstance(row, HeadRow)]
    width = sum(log2(new[name].channels / old[name].channels) for name in names) / len(names)
    hidden = [
        log2(after.hidden / before.hidden)
        for before, after in zip(base.rows.values(), spec.rows.values(), strict=True)
        if isinstance(before, ElanRow) and isinstance(after, ElanRow)
    ]
    return {
        **{f"depth_{part}": depths[rows[0]] for part, rows in list_parts(base).items()},
        "width": width,
        "hidden": sum(hidden) / max(len(hidden), 1),
        "image_size": float(choice.image_size),
        "auxiliary": float(choice.auxiliary),
    }
