"""Recognition of files in formats that are not read, such as those of annotation tools, and what to do instead."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

from yolov7.system.files import is_file

_BYTES, _FILES = 1 << 16, 20  # that are looked at
_TOOLS = {
    "labelme": ((b'"shapes"', b'"imagePath"'), "convert them to COCO with labelme's own labelme2coco.py"),
    "VIA": ((b'"regions"', b'"shape_attributes"'), "choose Annotation, Export Annotations (COCO format) in VIA"),
    "VIA (CSV)": (
        (b"region_shape_attributes", b"filename"),
        "choose Annotation, Export Annotations (COCO format) in VIA",
    ),
    "Label Studio": ((b'"from_name"', b'"result"'), "export the project as COCO or YOLO in Label Studio"),
    "CVAT": ((b"<annotations>", b"<image "), "export the task as COCO 1.0 or PASCAL VOC 1.1 in CVAT"),
}


_RESULTS = b'"image_id"', b'"score"'
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def tell_other_tool(path: Path) -> str | None:
    """Say what a file is that is not read, and how to get annotations that are read.

    Args:
        path: A file, or a folder whose files are looked at.

    Returns:
        A part of a sentence; None if nothing is recognised.
    """
    if path.is_file() and path.suffix.lower() in _ARCHIVES:
        return f"{path.name} is an archive; unpack it, and name the folder"
    files = chain.from_iterable(sorted(path.glob(f"*{suffix}")) for suffix in (".json", ".xml", ".csv"))
    for file in [path] if path.is_file() else islice(files, _FILES):
        if not is_file(file):
            continue
        with file.open("rb") as opened:
            start = opened.read(_BYTES).replace(b"\0", b"")  # also UTF-16
        for tool, (keys, remedy) in _TOOLS.items():
            if all(key in start for key in keys):
                return f"{file.name} is in the own format of {tool}, which is not read; {remedy}"
        if file.suffix == ".json" and start.lstrip()[:1] == b"[" and all(key in start for key in _RESULTS):
            return f"{file.name} holds results of a model and no annotations; name the annotation file"
    return None
