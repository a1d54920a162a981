"""The file `export.json` beside an exported model: the proof that the model was verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolov7.errors import ArtifactError
from yolov7.system.files import is_file, sha256_of

PROOF = "export.json"


def read_proof(folder: Path) -> dict[str, Any]:
    """Return the content of `export.json` in a folder.

    Args:
        folder: The folder of the exported model.

    Returns:
        The content; empty if there is no such file.

    Raises:
        ArtifactError: If the file is damaged.
    """
    path = folder / PROOF
    if not is_file(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        hashes = content["files"]
        if not all(isinstance(part, str) for pair in hashes.items() for part in pair):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"{path}: is damaged; export the model again, or delete this file") from None
    return dict(content)


def check_proof(file: Path) -> tuple[tuple[str, str], ...] | None:
    """Check that an exported file is still the one that was verified when `export.json` was written beside it.

    Args:
        file: The exported file.

    Returns:
        The engines and precisions in which the file was verified, in the order of preference; None if there is no
        `export.json` about it.

    Raises:
        ArtifactError: If the hash of the file, or of a file that belongs to it, differs.
    """
    proof = read_proof(file.parent)
    hashes: dict[str, str] = proof.get("files", {})
    if file.name not in hashes:
        return None
    for name, expected in hashes.items():
        path = file.with_name(Path(name).name)
        if not is_file(path):
            raise ArtifactError(f"{path}: is missing; export the model again")
        if sha256_of(path) != expected:
            raise ArtifactError(
                f"{path}: was changed after it was verified (its hash differs from {PROOF}); export the model again, "
                f"or delete {file.with_name(PROOF)} to use the file unverified"
            )
    return tuple((str(check["engine"]), str(check["precision"])) for check in proof.get("checks", ()))
