"""Several sources of data that are read as one data set, with classes that are renamed, merged or left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolov7.data.annotations import AnnotatedSplit, join_splits, new_classes, rename_classes
from yolov7.data.build_index import index_split
from yolov7.data.find_data import FoundData, files_of_split, parse_split
from yolov7.data.flaws import Flaw
from yolov7.data.index import ImageIndex
from yolov7.data.inspection import KnownImages, Progress
from yolov7.data.split_store import SplitStore, code_digest, stamp_files
from yolov7.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """One source of data.

    Attributes:
        name: Its name, which the ids of images begin with if there are several sources.
        found: Its files.
        splits: The name of each split in the source, by `train`, `val` and `test`.
        classes: The new names of classes; None for a class that is left out.
    """

    name: str
    found: FoundData
    splits: Mapping[str, str]
    classes: Mapping[str, str | None] = field(default_factory=dict)


class JoinedSources:
    """Sources that are read as one data set. The classes are those of their training splits, source by source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Store the sources.

        Args:
            sources: One source or several of different names.
        """
        self._sources = tuple(sources)
        self._own_names: dict[str, tuple[str, ...]] = {}  # of each source before classes are renamed

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that any source has, in the order in which they have to be read."""
        return tuple(split for split in SPLITS if any(split in source.splits for source in self._sources))

    def parse(self, split: str) -> AnnotatedSplit:
        """Parse the annotations of a split of all sources.

        The ids of a single source stay as they are. With several sources, the id of an image is `SOURCE:ID`, and the
        id of a class is its place, counted from 1.

        Args:
            split: One of `splits`; the first one decides the classes.

        Returns:
            The annotations.

        Raises:
            DataError: If a source cannot be used.
        """
        parsed = {
            source.name: parse_split(source.found, source.splits[split], class_names=self._own_names.get(source.name))
            for source in self._sources
            if split in source.splits
        }
        for source in self._sources:
            if source.name not in self._own_names:
                own = parsed[source.name] if source.name in parsed else self._first_split(source)
                self._own_names[source.name] = own.class_names
        renamed = {
            source.name: rename_classes(parsed[source.name], source.classes, file=str(source.found.root))
            for source in self._sources
            if source.name in parsed
        }
        if len(self._sources) == 1:
            return renamed[self._sources[0].name]
        classes = [
            name
            for source in self._sources
            for name in new_classes(self._own_names[source.name], source.classes, file=str(source.found.root))
        ]
        return join_splits(renamed, class_names=tuple(dict.fromkeys(classes)))

    def read(
        self,
        split: str,
        *,
        store: SplitStore | None = None,
        known: KnownImages | None = None,
        progress: Progress | None = None,
    ) -> tuple[ImageIndex, tuple[Flaw, ...]]:
        """Read a split of all sources, or take it from a store if nothing changed.

        Args:
            split: One of `splits`.
            store: Splits that were read before; this split is added.
            known: Images that were decoded before; the images of this split are added.
            progress: Called with the number of images that were checked, and the number of all images.

        Returns:
            The index and the flaws.

        Raises:
            DataError: If a source cannot be used.
        """
        key = self._key(split) if store is not None else ""
        stored = store.find(split, key) if store is not None else None
        if stored is not None:
            index, flaws, notes = stored
            self._own_names.update({name: tuple(names) for name, names in notes["classes"].items()})
            if known is not None:
                known.keep(index.paths)
            return index, flaws
        parsed = self.parse(split)
        images = parsed.annotations.paths
        stamp = stamp_files(images)
        result = index_split(parsed, known=known, progress=progress)
        if store is not None:
            notes = {"classes": self._own_names}
            store.save(split, key, result, images=images, stamp=stamp, notes=notes)
        return result

    def _key(self, split: str) -> str:
        """Return a digest of what decides a split, apart from its images."""
        parts: list[Any] = [code_digest(), split, self._own_names]
        for source in self._sources:
            found = source.found
            name = source.splits.get(split)
            stamp = stamp_files(files_of_split(found, name)) if name is not None else ""
            parts.append([source.name, found.format, str(found.root), str(found.file), name, source.classes, stamp])
        return hashlib.blake2b(json.dumps(parts).encode(errors="surrogatepass"), digest_size=16).hexdigest()

    def _first_split(self, source: Source) -> AnnotatedSplit:
        if not source.splits:
            raise DataError(f"source {source.name!r} has no split; name one in train, val or test")
        return parse_split(source.found, next(iter(source.splits.values())))
