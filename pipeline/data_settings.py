"""The settings under `data` in params.yaml: where the images and annotations are. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from yolov7.system.settings_base import Probability, Settings

MAX_SEED = 2**32 - 1
DataFormat = Literal["auto", "coco", "voc", "yolo"]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class SyntheticSettings(Settings):
    """The embedded data set, which is drawn from a seed."""

    train_images: int = Field(640, ge=1, description="Number of training images.")
    val_images: int = Field(160, ge=1, description="Number of validation images.")
    image_size: int = Field(192, ge=64, le=2048, description="Side of the images, pixels.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed from which the images are drawn.")
    shuffle_labels: bool = Field(
        False, description="Shuffle the labels of the training split, as a control: nothing can be learned from them."
    )


class FlawSettings(Settings):
    """What happens to flaws in the data. All flaws are counted and listed in the health report.

    Flawed boxes, the second of two images with one id, and unreadable images are left out, unless they are fatal.
    """

    fatal: tuple[Literal["boxes", "outlines", "ids", "sizes", "leaks"], ...] = Field(
        (), description="Groups of flaws of which a single one stops `prepare`."
    )
    max_unreadable: Probability = Field(
        0.01, description="Share of a split's images that may be unreadable before `prepare` stops."
    )


class SplitSettings(Settings):
    """Division of the training split into splits, stratified by class.

    The division depends on the seed and on the content of the images, not on their names and order.
    """

    val: Fraction = Field(0.0, description="Share of the images that become the validation split.")
    test: Fraction = Field(0.0, description="Share of the images that become the test split.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of the division.")
    group: str | None = Field(
        None,
        min_length=1,
        description="Images that stay in one split: `folder`, `near-duplicates`, or a regular expression; images in "
        "whose paths it finds the same text stay together. Copies of one file always do.",
    )

    @model_validator(mode="after")
    def _check_fractions(self) -> SplitSettings:
        if not 0 < self.val + self.test < 1:
            raise ValueError(f"val={self.val:g} and test={self.test:g} must have a sum above 0 and below 1")
        return self


_Classes = dict[str, str | None]
_CLASSES = "New names of classes; null: the objects of the class are left out. Other classes keep their names."


class SourceSettings(Settings):
    """One of several sources of data. Keys that are not stated are as in `data`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] | None = Field(
        None, description="Name of the source, which image ids begin with; null: the name of its folder."
    )
    format: DataFormat = Field("auto", description="Format of the annotations.")
    path: str = Field(description="Folder of the source, relative to data.path.")
    train: str | None = Field("train", description="Training split; null: no split.")
    val: str | None = Field("val", description="Validation split; null: no split.")
    test: str | None = Field(None, description="Test split; null: no split.")
    classes: _Classes = Field(default_factory=dict, description=_CLASSES)


class DataSettings(Settings):
    """Where the images and annotations are.

    `train`, `val` and `test` name JSON files under `path` for COCO, split lists in ImageSets/Main for VOC, and keys of
    the data.yaml, or folders or lists of images, for YOLO.
    """

    format: Literal["synthetic"] | DataFormat = Field(
        "synthetic", description="Format of the annotations; auto: recognised by the files."
    )
    path: str = Field(
        "yolov7/data/synthetic",
        description="Folder of the data set. For synthetic data: the code that draws them, so that DVC notices edits.",
    )
    train: str = Field("train", description="Training split.")
    val: str | None = Field("val", description="Split on which AP is measured during training; null: no split.")
    test: str | None = Field(None, description="Split that `evaluate` measures once; null: `evaluate` measures `val`.")
    split: SplitSettings | None = Field(None, description="Division of the training split; null: splits are given.")
    classes: _Classes = Field(default_factory=dict, description=_CLASSES)
    sources: tuple[SourceSettings, ...] = Field((), description="Several sources that are joined.")
    flaws: FlawSettings = FlawSettings()
    synthetic: SyntheticSettings = SyntheticSettings()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, content: Any) -> Any:
        """Fill in what sources take from `data`, and `val` and `test` that `split` makes."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        split, sources = content.get("split"), content.get("sources")
        for name in ("val", "test"):
            if isinstance(split, dict) and split.get(name):
                if content.get(name) is not None:
                    raise ValueError(f"{name} and split.{name} are both stated; remove one of them")
                content[name] = None
        if isinstance(sources, list | tuple):
            shared = {key: content[key] for key in ("format", "train", "val", "test") if key in content}
            content["sources"] = [shared | row if isinstance(row, dict) else row for row in sources]
        return content

    @model_validator(mode="after")
    def _check_splits(self) -> DataSettings:
        if self.format == "synthetic":
            if self.test is not None:
                raise ValueError(f"test={self.test!r}: the synthetic data have no test split; leave it out")
            for name in ("split", "classes", "sources"):
                if getattr(self, name):
                    raise ValueError(f"{name}: the synthetic data cannot be changed; set format: auto")
        names = [source_name(source) for source in self.sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"sources: two are called {min(twice)!r}; give each a name of its own")
        if self.sources and self.classes:
            raise ValueError("classes: state the classes of each source instead")
        return self

    @property
    def all_sources(self) -> tuple[SourceSettings, ...]:
        """The sources; the data themselves if none are stated."""
        if self.sources or self.format == "synthetic":
            return self.sources
        return (
            SourceSettings(
                format=self.format, path="", train=self.train, val=self.val, test=self.test, classes=self.classes
            ),
        )

    def has_split(self, split: str) -> bool:
        """Return whether the settings name a split.

        Args:
            split: `val` or `test`.
        """
        divided = self.split is not None and getattr(self.split, split) > 0
        if self.sources:
            return divided or any(getattr(source, split) is not None for source in self.sources)
        return divided or getattr(self, split) is not None


def source_name(source: SourceSettings) -> str:
    """Return the name of a source: the one that is stated, or that of its folder."""
    return source.name or Path(source.path).stem or "data"
