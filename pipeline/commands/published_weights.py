"""The commands `weights list` and `weights fetch`: published weights, their licences, and their download."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.console import console
from yolov7.errors import ArtifactError, SettingError, counted, suggest
from yolov7.system.downloads.http_download import Retries, download
from yolov7.system.files import write_whole
from yolov7.weights.published import PublishedWeights, cache_folder, published_weights

_UNKNOWN = "unknown"


def list_weights(*, as_json: bool) -> str:
    """Describe all published weights.

    Args:
        as_json: Whether to write JSON.

    Returns:
        The text to print: name, licence, size, whether they are fetched, sum, and address.
    """
    sums = _read("sums.json")
    rows = []
    for entry in published_weights().values():
        recorded = sums.get(entry.address)
        rows.append(asdict(entry) | {"recorded_sha256": recorded, "fetched": entry.path.is_file()})
    if as_json:
        return json.dumps(rows, indent=2)
    lines = []
    for row in rows:
        size = f"{row['size'] / 1e6:.1f} MB" if row["size"] else "size unknown"
        lines += [f"{row['name']:<26} {row['licence']:<26} {size:<14} {'fetched' if row['fetched'] else ''}".rstrip()]
        found = row["sha256"] or (f"{row['recorded_sha256']} (recorded)" if row["recorded_sha256"] else _UNKNOWN)
        lines += [f"  {row['address']}", f"  sha256 {found}"]
    return "\n".join([*lines, f"Fetched weights are in {cache_folder()}."])


def fetch_weights(
    name: str,
    *,
    accepted: bool,
    ask: Callable[[str], bool] | None,
    retries: Retries = Retries(),  # noqa: B008  (a frozen value)
) -> str:
    """Download published weights and convert them to a weight file.

    Args:
        name: Their name in the table.
        accepted: Whether the user has accepted the licence with this call.
        ask: A function that asks the user a question; None if nobody can answer.
        retries: How faults of the server are retried.

    Returns:
        Lines that say what was written.

    Raises:
        SettingError: The table has no such name, or the licence is not accepted.
        DataError: The file cannot be downloaded.
        ArtifactError: The file is not the one that was downloaded before, or cannot be converted.
    """
    known = published_weights()
    if name not in known:
        raise SettingError(f"no published weights {name!r}{suggest(name, known)} (name one of {', '.join(known)})")
    entry = known[name]
    if entry.path.is_file():
        return f"{name}: is fetched already, as {entry.path}"
    _accept_licence(entry, accepted=accepted, ask=ask)
    file = cache_folder() / "downloads" / entry.address.rpartition("/")[2]
    sums = _read("sums.json")
    expected = entry.sha256 or sums.get(entry.address)
    with _progress(file.name) as show:
        found = download(entry.address, file, sha256=expected, progress=show, retries=retries)
    if expected is None:
        write_whole(cache_folder() / "sums.json", json.dumps(_read("sums.json") | {entry.address: found}).encode())
    lines = _convert(entry, file)
    file.unlink()
    told = "as published" if entry.sha256 else "as at the first download" if expected else "recorded, none is published"
    return "\n".join([f"{name}: sha256 {found} ({told})", *lines, f"in params.yaml: train: {{weights: {name}}}"])


def _accept_licence(entry: PublishedWeights, *, accepted: bool, ask: Callable[[str], bool] | None) -> None:
    """Raise SettingError unless the licence was accepted now or before; record that it was."""
    licences = _read("licences.json")
    if licences.get(entry.name) == entry.licence:
        return
    console.print(f"{entry.name}: licence {entry.licence}\n{entry.note}\n{entry.address}")
    if not accepted and not (ask is not None and ask("Do you accept this licence?")):
        raise SettingError(
            f"the licence of {entry.name} ({entry.licence}) is not accepted; add --accept-licence to accept it"
        )
    write_whole(cache_folder() / "licences.json", json.dumps(licences | {entry.name: entry.licence}).encode())


def _convert(entry: PublishedWeights, file: Path) -> list[str]:
    from yolov7.weights.foreign.reference import import_checkpoint
    from yolov7.weights.weight_files import save_weights

    try:
        weights, remarks = import_checkpoint(file)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; the file is from {entry.address}") from None
    save_weights(
        entry.path,
        weights.model,
        class_names=weights.class_names,
        image_size=weights.image_size,
        letterbox=weights.letterbox,
        training=weights.training | {"licence": entry.licence, "address": entry.address},
    )
    described = f"{entry.path}: {weights.model.spec.name}, {counted(weights.model.num_classes, 'class', 'classes')}"
    return [described, *(f"{entry.name}: {remark}" for remark in remarks)]


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _read(name: str) -> dict[str, Any]:
    """Read a file of the cache folder; it is empty if it is missing or damaged."""
    try:
        content = json.loads((cache_folder() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
