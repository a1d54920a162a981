"""Which settings of the loss and of the optimizer have no effect, by the head, the schedule and other choices.

The functions `make_loss` and `build_schedule` decide it; a test compares this list with them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

from yolov7.settings import LossSettings, OptimSettings, TrainSettings
from yolov7.spec.head_rows import DetectRow, HeadRow, OneToOneHeadRow, YoloxHeadRow
from yolov7.system.plugins import is_dotted

_AUXILIARY = ("auxiliary", "auxiliary_gain", "auxiliary_constraint")


def settings_without_effect(head: HeadRow | None, train: TrainSettings) -> dict[str, str]:
    """Find the settings of the loss and of the optimizer that have no effect on a training.

    It depends on the head, and on settings that are a choice among names. A number with which another setting has no
    effect, such as a warm-up of 0 epochs, does not count, because a search may vary it.

    Args:
        head: The head of the model; None leaves out the settings of the loss.
        train: The settings of the training.

    Returns:
        The reason by the name of the setting: `{"loss.box": "on the head 'detect_dfl', whose loss does not use it"}`.
    """
    of_loss = () if head is None else _of_loss(head, train.loss)
    loss = {f"loss.{name}": reason for name, reason in of_loss}
    return loss | {f"optim.{name}": reason for name, reason in _of_optimizer(train.optim)}


def depends_on_data(name: str, *, recipe: str | None) -> bool:
    """Return whether a setting may have an effect with some data and none with others, as `fit_to_data` then reports.

    Args:
        name: The name of the setting, such as `optim.nesterov`.
        recipe: The recipe. Only `small` chooses the optimizer and the number of epochs from the data.
    """
    return recipe == "small" and (name.startswith("optim.") or name in ("low_resolution_share", "unfreeze_epochs"))


def stated_without_effect(head: HeadRow | None, train: TrainSettings, stated: Iterable[str]) -> tuple[str, ...]:
    """Describe, in one sentence each, the stated settings that have no effect and differ from their defaults.

    Args:
        head: The head of the model; None leaves out the settings of the loss.
        train: The settings of the training.
        stated: The names of the settings that are stated, such as `loss.box`.

    Returns:
        Sentences such as `loss.box=0.1 has no effect on the head 'detect_dfl', whose loss has constants of its own`.
    """
    reasons = settings_without_effect(head, train) | dict(_of_pairs(train))
    default = TrainSettings()
    values = {name: (_value(train, name), _value(default, name)) for name in stated if name in reasons}
    return tuple(f"{name}={now} has no effect {reasons[name]}" for name, (now, usual) in values.items() if now != usual)


def _value(train: TrainSettings, name: str) -> object:
    return reduce(getattr, name.split("."), train)


def _of_pairs(train: TrainSettings) -> Iterator[tuple[str, str]]:
    """Yield the settings that have an effect only if another setting has a value that it has not."""
    if train.distil.teacher is None:
        yield from ((f"distil.{name}", "without distil.teacher") for name in ("outputs", "features"))
    elif not train.distil.is_used:
        yield "distil.teacher", "with distil.outputs: 0 and distil.features: 0"
    if not train.low_resolution_share:
        yield "low_resolution", "with low_resolution_share: 0"
    elif not round(train.low_resolution_share * train.epochs):
        yield "low_resolution_share", f"because that is less than half an epoch with epochs: {train.epochs}"
    if train.unfreeze_epochs > train.epochs:
        yield "unfreeze_epochs", f"on rows that would be released after the last epoch, with epochs: {train.epochs}"


def _of_loss(head: HeadRow, loss: LossSettings) -> Iterator[tuple[str, str]]:
    if isinstance(head, DetectRow):
        yield from _of_anchor_based_loss(head, loss)
        return
    used = {name for name in ("assigner", "box_loss") if is_dotted(getattr(loss, name))}
    if isinstance(head, YoloxHeadRow):
        rule = {"simota"}
    else:
        rule = {"four_cells"} if isinstance(head, OneToOneHeadRow) else {"four_cells", "atss_epochs"}
    for name in LossSettings.model_fields:
        if name in rule and "assigner" in used:
            yield name, f"with loss.assigner: {loss.assigner}"
        elif name not in rule | used:
            yield name, f"on the head {head.block!r}, whose loss does not use it"


def _of_anchor_based_loss(head: DetectRow, loss: LossSettings) -> Iterator[tuple[str, str]]:
    for name in ("simota", "atss_epochs"):
        yield name, f"on the head {head.block!r}"
    if head.auxiliary is None:
        yield from ((name, "on a model without an auxiliary head") for name in _AUXILIARY)
    if loss.assigner != "ota":
        unused = ("merge_duplicate_cells", "four_cells")  # anchor_threshold decides whether anchors are fitted too
        yield from ((name, f"with loss.assigner: {loss.assigner}") for name in unused)
    is_varifocal = {name: getattr(loss, name) == "varifocal" for name in ("objectness_loss", "classification_loss")}
    for name, which in (
        ("objectness_pos_weight", "objectness_loss"),
        ("classification_pos_weight", "classification_loss"),
        ("label_smoothing", "classification_loss"),
    ):
        if is_varifocal[which]:
            yield name, f"with loss.{which}: varifocal"
    if all(is_varifocal.values()):
        yield "focal_gamma", "with loss.objectness_loss and loss.classification_loss: varifocal"


def _of_optimizer(optim: OptimSettings) -> Iterator[tuple[str, str]]:
    schedule, optimizer = f"with optim.schedule: {optim.schedule}", f"with optim.optimizer: {optim.optimizer}"
    match optim.schedule:
        case "scaled":
            unused = ["flat_share"]
        case "reference":
            unused = ["flat_share", "warmup_share"]
        case "yolox":
            unused = ["decay", "warmup_momentum", "warmup_bias_lr"]
        case "ppyoloe":
            unused = ["decay", "warmup_momentum", "warmup_bias_lr", "flat_share", "lr_final"]
    yield from ((name, schedule) for name in unused)
    if optim.optimizer != "sgd":
        yield "nesterov", optimizer
        if optim.schedule == "scaled":
            yield "warmup_bias_lr", optimizer
    if optim.ema == "corrected":
        yield "ema_ramp", "with optim.ema: corrected"
