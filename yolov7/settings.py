"""Every setting of the detector with its default, validated; imports no torch, so that a command line stays quick.

The defaults are the reference's settings for yolov7-tiny where it has one, except that the warm-up is a share of the
run, the last epochs go without mosaic, mosaics are of four, and nothing is pasted; its settings for every kind of model
are `recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from yolov7.recipes import RecipeName, expand_recipe

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
CocoEngine = Literal["hotcoco", "pycocotools"]
COCO_ENGINE: CocoEngine = "hotcoco"  # where none is named
Precision = Literal["auto", "float32", "bfloat16", "float16"]
AnchorMode = Literal["auto", "spec", "fit"]


class Settings(BaseModel):
    """Frozen settings that know every key: an unknown one is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AugmentSettings(Settings):
    """How training samples vary. Mosaic, mixup and pasted objects are left out in the last epochs (`close_mosaic`)."""

    mosaic: Probability = Field(1.0, description="probability that a sample is a mosaic of several images")
    mosaic_nine: Probability = Field(
        0.0, description="share of the mosaics that consist of nine images; the others consist of four"
    )
    mixup: Probability = Field(
        0.05,
        description="probability of blending a sample with a second one that is drawn in the same way, mosaic or not",
    )
    copy_paste: Probability = Field(
        0.0, description="probability of pasting a mirrored copy of an object where it covers no other object"
    )
    paste_in: Probability = Field(
        0.0, description="probability of pasting objects of other images into a sample where they cover no other object"
    )
    degrees: NonNegative = Field(0.0, le=180.0, description="largest rotation, in degrees")
    translate: NonNegative = Field(0.1, le=0.9, description="largest shift, as a share of the image size")
    scale: NonNegative = Field(0.5, lt=1.0, description="the scale is drawn from (1 - scale, 1.1 + scale)")
    shear: NonNegative = Field(0.0, lt=90.0, description="largest shear, in degrees")
    perspective: NonNegative = Field(0.0, le=0.001, description="largest perspective coefficient, in 1/pixel")
    hsv_hue: NonNegative = Field(0.015, le=0.4, description="the hue is multiplied by 1 +- hsv_hue")
    hsv_saturation: Probability = Field(0.7, description="the saturation is multiplied by 1 +- hsv_saturation")
    hsv_value: Probability = Field(0.4, description="the brightness is multiplied by 1 +- hsv_value")
    flip_horizontal: Probability = Field(0.5, description="probability of exchanging left and right")
    flip_vertical: Probability = Field(0.0, description="probability of exchanging top and bottom")


class LossSettings(Settings):
    """Gains of the loss, before they are scaled by the number of levels, classes and the image size."""

    assigner: Literal["ota", "anchor"] = Field("ota", description="anchor: by shape alone, as YOLOv5 matches")
    box_loss: Literal["ciou", "giou", "diou", "siou", "eiou"] = Field("ciou", description="what boxes are compared by")
    box: NonNegative = 0.05
    objectness: NonNegative = 1.0
    classification: NonNegative = 0.5
    objectness_loss: Literal["bce", "varifocal"] = Field(
        "bce", description="varifocal: VarifocalNet's (Zhang et al., 2021)"
    )
    classification_loss: Literal["bce", "varifocal"] = Field(
        "bce", description="varifocal: a class is learned as far as the box fits its object"
    )
    label_smoothing: Probability = 0.0
    focal_gamma: NonNegative = Field(0.0, description="of what is bce; 0: not focal")
    objectness_pos_weight: Positive = 1.0
    classification_pos_weight: Positive = 1.0
    anchor_threshold: float = Field(4.0, gt=1.0, description="largest ratio of a side of box and anchor")
    merge_duplicate_cells: bool = Field(
        True, description="a cell positive for several objects goes to the cheapest one (the reference keeps all)"
    )
    auxiliary: Literal["coarse_to_fine", "lead_guided", "independent"] = Field(
        "coarse_to_fine", description="what an auxiliary head learns from: coarser cells, the lead's, its own"
    )
    auxiliary_gain: NonNegative = Field(0.25, description="of the auxiliary head's loss")
    auxiliary_constraint: bool = Field(
        True, description="the auxiliary head's boxes reach as far as the lead's, which is not quite to coarse cells"
    )

    @model_validator(mode="after")
    def _check_varifocal(self) -> LossSettings:
        if self.objectness_loss == "varifocal" and self.objectness_pos_weight != 1:
            raise ValueError("objectness_loss='varifocal' has weights of its own; leave objectness_pos_weight at 1")
        if self.classification_loss == "varifocal" and (self.classification_pos_weight != 1 or self.label_smoothing):
            given = "classification_pos_weight at 1 and label_smoothing at 0"
            raise ValueError(f"classification_loss='varifocal' has weights and goals of its own; leave {given}")
        return self


class OptimSettings(Settings):
    """The optimizer, a cosine schedule, warm-up and the exponential moving average of the weights."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd: with Nesterov momentum, the reference's")
    schedule: Literal["scaled", "reference"] = Field(
        "scaled",
        description="scaled: the warm-up to the run; reference: its own of at least 1000 steps, cosine by epoch",
    )
    lr0: Positive = Field(0.01, description="learning rate after warm-up, at the nominal batch")
    lr_final: Positive = Field(0.01, le=1.0, description="last learning rate as a share of lr0")
    momentum: Probability = 0.937
    weight_decay: NonNegative = Field(0.0005, description="of convolution weights, at the nominal batch")
    nominal_batch: int = Field(64, ge=1, description="gradients accumulate until this many images were seen")
    warmup_epochs: NonNegative = 3.0
    warmup_share: Probability = Field(0.1, description="the warm-up never takes more than this share of the run")
    warmup_momentum: Probability = 0.8
    warmup_bias_lr: NonNegative = Field(0.1, description="of SGD's biases at the first step; AdamW's start from 0")
    ema_decay: float = Field(0.9999, gt=0.0, lt=1.0)
    ema_ramp: Positive = Field(2000.0, description="updates over which the decay grows to ema_decay")


class TrainSettings(Settings):
    """One training run. `train` in params.yaml holds them for all variants, `variants.NAME.train` overrides some."""

    recipe: RecipeName | None = Field(None, description="named settings (yolov7/recipes.py); other keys override it")
    epochs: int = Field(300, ge=1)
    batch_size: int = Field(16, ge=1, description="images a step, over all workers")
    image_size: int = Field(640, ge=32, le=8192, description="side of the square training images, pixels")
    precision: Precision = Field("auto", description="auto: bfloat16 where the device is fast at it, else float32")
    anchors: AnchorMode = Field(
        "auto", description="spec: its own; fit: to the boxes; auto: fitted where its own have a recall below 0.98"
    )
    weights: Path | None = Field(None, description="a weight file to start from; its classes may be others")
    freeze: str | None = Field(None, description="rows up to and including this one keep their weights")
    class_balance: Probability = Field(0.0, description="classes in a smaller share of the images are seen more often")
    patience: int = Field(0, ge=0, description="epochs without a better AP on val after which it ends; 0: never")
    swa_epochs: int = Field(
        0, ge=0, description="last epochs whose weights are averaged; 0: the moving average is kept"
    )
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the model")
    multi_scale: Probability = Field(0.0, description="training sizes vary by up to this share")
    close_mosaic: int = Field(
        10, ge=0, description="last epochs without mosaic, mixup and pasted objects; at most a fifth of the run"
    )
    validate_every: int = Field(1, ge=1, description="epochs between two validations")
    checkpoint_every: int = Field(1, ge=1, description="epochs between two checkpoints")
    checkpoint_minutes: NonNegative = Field(10.0, description="and within an epoch, minutes since the last one")
    checkpoints_kept: int = Field(2, ge=1, description="the last ones; where one is damaged, that before it serves")
    loader_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="processes that prepare samples"
    )
    cache_images: Literal["auto", "memory", "disk", "none"] = Field(
        "auto", description="where decoded images are kept; auto: in memory, if they fit well"
    )
    augment: AugmentSettings = AugmentSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()

    @model_validator(mode="before")
    @classmethod
    def _expand_recipe(cls, given: Any) -> Any:
        return expand_recipe(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _check_whole(self) -> TrainSettings:
        if self.recipe == "finetune" and self.weights is None:
            raise ValueError("recipe='finetune' starts from other weights; name them in weights")
        if self.patience and self.swa_epochs:
            raise ValueError("patience and swa_epochs exclude each other: a run that may end early has no last epochs")
        return self


class NmsSettings(Settings):
    """From raw maps to detections."""

    confidence: Probability = 0.25
    iou: Probability = 0.45
    max_detections: int = Field(300, ge=1, description="an image")
    max_candidates: int = Field(30_000, ge=1, description="an image, before suppression")
    multi_label: bool = Field(False, description="a detection for every class above the confidence, not the best only")
    agnostic: bool = Field(False, description="suppress across classes")


COCO_NMS = NmsSettings(confidence=0.001, iou=0.65, multi_label=True)  # for COCO figures, as the reference measures them
