"""Translation of the tensor names of other implementations of YOLOv7 to those of the reference.

Sources: MultimediaTechLab/YOLO (MIT licence) and LibreYOLO (MIT licence). MMYOLO's files are recognised only to be
refused, because no proven translation of their names exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from yolov7.errors import ArtifactError

_WRAPPERS = ("module.", "model.model.", "layers.")  # of DataParallel, Lightning and LibreYOLO 1.5
_MULTIMEDIATECHLAB = re.compile(r"\d+\.conv\.weight")
_LIBREYOLO_2026_01 = re.compile(r"backbone\.conv\d+\.conv\.weight")
_MMYOLO = re.compile(r"bbox_head\.head_module\..*")
_GRAPH = (
    "its names are those of {}, whose graph differs from YOLOv7's in two places (the lateral into P3, and pooling one "
    "after the other in SPPCSPC): weights that were converted from YOLOv7 are correct here, and weights that were "
    "trained with that graph are not; verify AP on COCO val"
)
_SPP_LAYER, _HEAD_LAYER = "51", "105"  # of YOLOv7, the only model that these implementations publish
_SPP_MODULES = {
    "pre_conv.0": "cv1",
    "short_conv": "cv2",
    "pre_conv.1": "cv3",
    "pre_conv.2": "cv4",
    "post_conv.0": "cv5",
    "post_conv.1": "cv6",
    "merge_conv": "cv7",
}
_BRANCHES = {"conv1.conv": "rbr_dense.0", "conv1.bn": "rbr_dense.1", "conv2.conv": "rbr_1x1.0", "conv2.bn": "rbr_1x1.1"}
_Rules = tuple[tuple[str, str], ...]  # patterns and their replacements
_COMMON: _Rules = (
    *((rf"^{_SPP_LAYER}\.{re.escape(own)}\.", f"{_SPP_LAYER}.{name}.") for own, name in _SPP_MODULES.items()),
    *((rf"^(\d+)\.{re.escape(own)}\.", rf"\1.{name}.") for own, name in _BRANCHES.items()),
)
_MULTIMEDIATECHLAB_RULES: _Rules = (
    *_COMMON,
    (rf"^{_HEAD_LAYER}\.heads\.(\d+)\.head_conv\.", rf"{_HEAD_LAYER}.m.\1."),
    (rf"^{_HEAD_LAYER}\.heads\.(\d+)\.implicit_([am])\.", rf"{_HEAD_LAYER}.i\2.\1."),
)
_LIBREYOLO_RULES: _Rules = (
    (r"^(?:backbone|neck)\.conv(\d+)\.", r"\1."),
    (r"^neck\.sppcspc\.", f"{_SPP_LAYER}."),
    (r"^rep(\d+)\.", r"\1."),
    (r"^detect\.", f"{_HEAD_LAYER}."),
    *_COMMON,
)


class Translation(NamedTuple):
    """The reference's names for the tensors of a file.

    Attributes:
        names: The name in the file by the reference's name.
        remarks: What the user should know about the implementation that wrote the file.
    """

    names: dict[str, str]
    remarks: tuple[str, ...] = ()


def translate_names(names: Iterable[str]) -> Translation:
    """Translate the names of all tensors of a file.

    Args:
        names: The names in the file.

    Returns:
        The reference's names. Names of an unknown scheme, and the reference's own names, stay as they are.

    Raises:
        ArtifactError: The names are of a scheme that is known but has no translation.
    """
    by_name = {name: name for name in names}
    for wrapper in _WRAPPERS:
        if by_name and all(name.startswith(wrapper) for name in by_name):
            by_name = {name.removeprefix(wrapper): own for name, own in by_name.items()}
    if any(_MMYOLO.fullmatch(name) for name in by_name):
        raise ArtifactError(
            "is a state dict of MMYOLO, whose names this program cannot translate; use the checkpoint of the reference "
            "implementation that it was converted from"
        )
    if any(_LIBREYOLO_2026_01.fullmatch(name) for name in by_name):
        peer, rules = "LibreYOLO", _LIBREYOLO_RULES
    elif any(_MULTIMEDIATECHLAB.fullmatch(name) for name in by_name):
        peer, rules = "MultimediaTechLab/YOLO and LibreYOLO", _MULTIMEDIATECHLAB_RULES
    else:
        return Translation(by_name)
    translated = {f"model.{_translate(name, rules)}": own for name, own in by_name.items()}
    return Translation(translated, (_GRAPH.format(peer),))


def _translate(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
