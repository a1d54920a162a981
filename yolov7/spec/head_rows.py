"""Rows of detection heads: the anchor-based head of YOLOv7, and anchor-free heads with one prediction per cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, final

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from yolov7.spec.row import Convolution, Count, MapShape, RowBase, Sources

Side = Annotated[float, Field(gt=0.0, le=65_536.0, allow_inf_nan=False)]
LevelAnchors = Annotated[tuple[Side, ...], Field(max_length=40)]
Factor = Annotated[float, Field(ge=1.0, le=2.0, allow_inf_nan=False)]
Bins = Annotated[int, Field(strict=True, ge=2, le=256)]

_MIN_BOX_WIDTH = 16


class HeadRow(RowBase):
    """A detection head, with one map per level.

    Attributes:
        block: Name of the kind of head.
        anchor_free: Whether each cell has one prediction instead of one per anchor.
        needs_suppression: Whether several predictions may be of one object, so that all but one must be suppressed.
    """

    anchor_free: ClassVar[bool] = True
    needs_suppression: ClassVar[bool] = True
    block: str

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the number of predictions per cell and the largest stride; see `RowBase`."""
        strides = [shape.stride for shape in inputs]
        if strides != sorted(set(strides)):
            raise ValueError(f"strides {strides} must be strictly ascending; name the finest map first")
        return MapShape(1, strides[-1])

    @property
    def taps(self) -> tuple[str, ...]:
        """The maps that the auxiliary head takes; empty without an auxiliary head."""
        return ()

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The maps of the lead head, then those of the auxiliary head."""
        return (*self.sources, *self.taps)


@final
class Auxiliary(BaseModel):
    """The auxiliary head (section 4.2): on each level, a 3x3 convolution of the tapped map, then a 1x1 convolution.

    Attributes:
        sources: Names of the tapped rows, finest first (`from` in a file).
        out: Widths of the 3x3 convolutions. By default, they are the widths of the maps of the lead head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: Sources = Field(alias="from")
    out: Annotated[tuple[Count, ...], Field(max_length=16)] | None = None


@final
class DetectRow(HeadRow):
    """The anchor-based head.

    Attributes:
        block: Always `detect`.
        anchors: For each level, width and height of every anchor in pixels, in one flat list.
        implicit: Whether the head has implicit knowledge (section 4.3).
        auxiliary: The auxiliary head, if there is one.
        scale_xy: For each level, the factor by which darknet's YOLOv4 stretches the offset of a centre from the middle
            of its cell. Sides are then exp(w) anchors. A head with these factors can be used, but not trained. None is
            the decoding of YOLOv7.
    """

    anchor_free: ClassVar[bool] = False
    block: Literal["detect"]
    anchors: Annotated[tuple[LevelAnchors, ...], Field(max_length=16)]
    implicit: bool = True
    auxiliary: Auxiliary | None = None
    scale_xy: Annotated[tuple[Factor, ...], Field(max_length=16)] | None = None

    @model_serializer(mode="wrap")
    def _serialise(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `scale_xy` where it is None, so that runs of earlier versions keep their fingerprints."""
        plain: dict[str, Any] = dump(self)
        return plain if self.scale_xy else {key: value for key, value in plain.items() if key != "scale_xy"}

    def shape(self, inputs: Sequence[MapShape]) -> MapShape:
        """Return the number of anchors per level and the largest stride; see `RowBase`."""
        if len(self.anchors) != len(inputs):
            raise ValueError(f"{len(self.anchors)} levels of anchors for {len(inputs)} maps; give one list per map")
        if self.scale_xy is not None and len(self.scale_xy) != len(inputs):
            raise ValueError(f"{len(self.scale_xy)} values of scale_xy for {len(inputs)} maps; give one per map")
        sizes = {len(level) for level in self.anchors}
        if len(sizes) != 1 or sizes == {0} or min(sizes) % 2:
            raise ValueError(
                "anchors must be pairs of width and height, and each level must have the same number of them"
            )
        return super().shape(inputs)._replace(channels=len(self.anchors[0]) // 2)

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the 3x3 convolutions of the auxiliary head; the 1x1 convolutions depend on the number of classes."""
        lead, taps = inputs[: len(self.sources)], inputs[len(self.sources) :]
        widths = (self.auxiliary.out if self.auxiliary else None) or [shape.channels for shape in lead]
        return tuple(Convolution(tap.channels, width, 3) for tap, width in zip(taps, widths[: len(taps)], strict=True))

    @property
    def taps(self) -> tuple[str, ...]:
        """The maps that the auxiliary head takes; empty without an auxiliary head."""
        return self.auxiliary.sources if self.auxiliary else ()

    def check_auxiliary(self, lead: Sequence[MapShape], taps: Sequence[MapShape]) -> None:
        """Check that the auxiliary head has the levels of the lead head.

        Args:
            lead: Shapes of the maps of the lead head.
            taps: Shapes of the maps of the auxiliary head.

        Raises:
            ValueError: If the strides or the number of widths differ.
        """
        strides, tapped = [shape.stride for shape in lead], [shape.stride for shape in taps]
        if tapped and tapped != strides:
            raise ValueError(f"the maps of the auxiliary head have strides {tapped}; the lead head needs {strides}")
        if self.auxiliary and self.auxiliary.out and len(self.auxiliary.out) != len(lead):
            raise ValueError(f"the auxiliary head has {len(self.auxiliary.out)} widths for {len(lead)} levels")


@final
class YoloxHeadRow(HeadRow):
    """The decoupled head of YOLOX: on each level a stem, then one tower for classes and one for box and objectness.

    Attributes:
        block: Always `detect_yolox`.
        hidden: Width of the stem and of both towers.
    """

    block: Literal["detect_yolox"]
    hidden: Count

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions of stems and towers; the last convolutions depend on the number of classes."""
        stems = [Convolution(shape.channels, self.hidden, 1) for shape in inputs]
        return (*stems, *(Convolution(self.hidden, self.hidden, 3, repeats=4) for _ in inputs))


@final
class PpyoloeHeadRow(HeadRow):
    """The head of PP-YOLOE: channel attention for classes and for sides, which are distributions over bins.

    Attributes:
        block: Always `detect_ppyoloe`.
        bins: Number of bins of the distance between the centre of a cell and a side of the box, in strides from 0.
    """

    block: Literal["detect_ppyoloe"]
    bins: Bins = 17

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the 1x1 convolutions of both attentions: the gates, and those that follow the gates."""
        widths = [shape.channels for shape in inputs]
        gates = [Convolution(width, width, 1, repeats=2, norms=0, bias=True) for width in widths]
        return (*gates, *(Convolution(width, width, 1, repeats=2) for width in widths))


@final
class DflHeadRow(HeadRow):
    """The head of YOLOv7-u6: on each level one tower for sides, which are distributions over bins, and one for classes.

    Attributes:
        block: Always `detect_dfl`.
        bins: Number of bins of the distance between the centre of a cell and a side of the box, in strides from 0.
        implicit: Whether both branches have implicit knowledge (section 4.3).
    """

    block: Literal["detect_dfl"]
    bins: Bins = 16
    implicit: bool = True

    def tower_widths(self, inputs: Sequence[MapShape]) -> tuple[int, int]:
        """Return the widths of the towers, which depend on the finest map only.

        The original also widens the tower of the classes if there are very many classes. Here it does not, so that
        weights fit models with any number of classes.

        Args:
            inputs: Shapes of the maps of the sources.

        Returns:
            The widths of the towers of the sides and of the classes.
        """
        finest = inputs[0].channels
        return max(finest // 4, _MIN_BOX_WIDTH), finest

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions of both towers; the last convolutions depend on the number of classes."""
        first = [Convolution(shape.channels, width, 3) for shape in inputs for width in self.tower_widths(inputs)]
        return (*first, *(Convolution(width, width, 3, repeats=len(inputs)) for width in self.tower_widths(inputs)))


@final
class OneToOneHeadRow(HeadRow):
    """A head without non-maximum suppression: two branches of the form of YOLOv7-u6, of which one is deployed.

    The deployed branch learns one cell for each object. The auxiliary branch learns several cells and exists only in
    training (consistent dual assignments of YOLOv10, Wang et al., 2024, arXiv 2405.14458, section 3.1).

    Attributes:
        block: Always `detect_one_to_one`.
        bins: See `DflHeadRow`.
        implicit: See `DflHeadRow`.
        auxiliary: Whether there is an auxiliary branch.
    """

    needs_suppression: ClassVar[bool] = False
    block: Literal["detect_one_to_one"]
    bins: Bins = 16
    implicit: bool = True
    auxiliary: bool = True

    @property
    def branch(self) -> DflHeadRow:
        """The row of one branch."""
        return DflHeadRow.model_validate(
            {"block": "detect_dfl", "from": self.sources, "activation": self.activation}
            | {"bins": self.bins, "implicit": self.implicit}
        )

    @property
    def taps(self) -> tuple[str, ...]:
        """The maps that the auxiliary branch takes: those of the deployed one; empty without an auxiliary branch."""
        return self.sources if self.auxiliary else ()

    def convolutions(self, inputs: Sequence[MapShape]) -> tuple[Convolution, ...]:
        """Return the convolutions of the towers of both branches; see `DflHeadRow`."""
        one = self.branch.convolutions(inputs[: len(self.sources)])
        return one * 2 if self.auxiliary else one
