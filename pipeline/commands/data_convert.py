"""The command `data convert`: write a data set in another annotation format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

from yolov7.data.find_data import DataFormat, find_data
from yolov7.data.flaws import FlawKind
from yolov7.data.write.convert import Conversion, Placement, convert_data
from yolov7.errors import SettingError, counted, shown, suggest

_REMARKS = {FlawKind.BACKGROUND, FlawKind.NO_LABEL_FILE}  # which lose nothing


def run_convert(source: Path, format: str, folder: Path, *, placement: Placement) -> list[str]:
    """Convert a data set.

    Args:
        source: The folder of the data set, a data.yaml or a COCO file.
        format: The new format.
        folder: The new folder.
        placement: Whether images are linked or copied.

    Returns:
        Lines that say what was found, written and lost.

    Raises:
        SettingError: If the format is unknown.
        DataError: If the source cannot be used, or the folder cannot be written.
    """
    formats: tuple[DataFormat, ...] = get_args(DataFormat)
    wanted = next((one for one in formats if one == format), None)
    if wanted is None:
        hint = suggest(format, formats) or f"; choose one of: {', '.join(formats)}"
        raise SettingError(f"--to={shown(format)} is no format that is written{hint}")
    found = find_data(source)
    return [f"found {found.description}", *_lines(convert_data(found, wanted, folder, placement=placement), folder)]


def _lines(done: Conversion, folder: Path) -> list[str]:
    splits = [
        f"{split}: {counted(images, 'image')}, {counted(objects, 'object')}"
        for split, (images, objects) in done.splits.items()
    ]
    images = [
        f"{counted(number, 'image')} {how}"
        for number, how in ((done.linked, "hard-linked to the source"), (done.copied, "copied"))
        if number
    ]
    losses = [f"lost: {count:,} {what}" for what, count in done.losses.most_common() if count]
    kinds = Counter(flaw.kind for flaw in done.flaws if flaw.kind not in _REMARKS)
    first = {flaw.kind: flaw for flaw in reversed(done.flaws)}
    flaws = [
        f"flaw of the source: {count:,} x {kind} ({kind.outcome}), e.g. {first[kind].file}: {first[kind].detail}"
        for kind, count in kinds.most_common()
    ]
    nothing = [] if losses or flaws else ["nothing was lost"]
    return [*splits, *losses, *flaws, *nothing, f"written to {folder} ({', '.join(images)})"]
