"""Settings of the detector with their defaults and validation. Imports no torch, so that a command line starts quickly.

The defaults are the reference's settings for yolov7-tiny, with four exceptions: the warm-up is at most a share of the
run, the last epochs have no mosaic, mosaics are made of four images, and no objects are pasted. See also `recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from yolov7.recipes import RecipeName, expand_preset, expand_recipe
from yolov7.system.plugins import (
    ASSIGNER,
    AUGMENTATION,
    BOX_LOSS,
    CALLBACK,
    AugmentationName,
    CallbackName,
    Kind,
    is_dotted,
    named_choice,
)
from yolov7.system.settings_base import AUTO_NORM, BatchSize, ClipNorm, NonNegative, Positive, Probability, Settings

CocoEngine = Literal["hotcoco", "pycocotools"]
COCO_ENGINE: CocoEngine = "hotcoco"  # the default
Precision = Literal["auto", "float32", "bfloat16", "float16"]
AnchorMode = Literal["auto", "spec", "fit"]
LetterboxMode = Literal["centre", "top_left", "stretch"]
Guidance = Literal["coarse_to_fine", "lead_guided", "independent"]


class AugmentSettings(Settings):
    """How training samples vary. Mosaic, mixup and pasted objects are left out in the last epochs (`close_mosaic`).

    The name of a preset (light, medium or strong) can be given in place of the settings, or as `preset` beside them.
    """

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
    flip_horizontal: Probability = Field(0.5, description="probability of a horizontal flip (left and right)")
    flip_vertical: Probability = Field(0.0, description="probability of a vertical flip (top and bottom)")
    plugins: tuple[AugmentationName, ...] = Field(
        (), description="dotted names of own augmentations, which are applied last, in this order"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, given: Any) -> Any:
        return expand_preset(given)


class LossSettings(Settings):
    """Settings of the loss. Gains are scaled by the numbers of levels and classes and by the image size.

    Only `simota`, `atss_epochs` and `four_cells` affect heads without anchors; their other constants are those of their
    papers.
    """

    assigner: Annotated[str, named_choice(ASSIGNER, "ota", "anchor")] = Field(
        "ota",
        description="ota: by predictions; anchor: by the shape of the anchor only, as in YOLOv5; or the dotted name of "
        "an own assigner, for heads of every kind",
    )
    simota: Literal["r25", "r15"] = Field(
        "r25",
        description="candidates of YOLOX's head; r25: cells in a box or within 2.5 strides of its centre; "
        "r15: cells within 1.5 strides",
    )
    atss_epochs: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="number of first epochs in which heads with distributions assign by place and not by predictions "
        "(ATSS); at most a third of the run",
    )
    box_loss: Annotated[str, named_choice(BOX_LOSS, "ciou", "giou", "diou", "siou", "eiou")] = Field(
        "ciou",
        description="measure of similarity of two boxes: ciou, giou, diou, siou, eiou, or the dotted name of your own",
    )
    box: NonNegative = Field(0.05, description="gain of the box loss")
    objectness: NonNegative = Field(1.0, description="gain of the objectness loss")
    classification: NonNegative = Field(0.5, description="gain of the class loss")
    objectness_loss: Literal["bce", "varifocal"] = Field(
        "bce", description="binary cross-entropy, or varifocal loss (Zhang et al., 2021)"
    )
    classification_loss: Literal["bce", "varifocal"] = Field(
        "bce", description="with varifocal, the target of a class is the quality of the predicted box"
    )
    objectness_balance: Literal["fine", "coarse"] = Field(
        "fine", description="level with the largest weight in the objectness loss"
    )
    objectness_by_size: bool = Field(
        True, description="multiply the objectness gain by (image_size / 640) squared; false: as in the port of YOLOv4"
    )
    label_smoothing: Probability = Field(0.0, description="s: the class targets are 1 - s/2 and s/2")
    focal_gamma: NonNegative = Field(
        0.0, description="exponent of the focal loss for the parts that use bce; 0: no focal loss"
    )
    objectness_pos_weight: Positive = Field(1.0, description="weight of positive cells in the objectness loss")
    classification_pos_weight: Positive = Field(1.0, description="weight of the true class in the class loss")
    anchor_threshold: float = Field(
        4.0, gt=1.0, description="largest ratio between the sides of a box and of its anchor"
    )
    merge_duplicate_cells: bool = Field(
        True, description="assign a cell that several objects propose to one of them (the reference keeps all)"
    )
    four_cells: bool = Field(
        False,
        description="give objects with a side below two strides of the finest level at least four cells: four "
        "candidates of heads with distributions, four positives of the assigner ota",
    )
    auxiliary: Guidance = Field(
        "coarse_to_fine",
        description="cells that the auxiliary head learns from: coarser ones, those of the lead head, or its own",
    )
    auxiliary_gain: NonNegative = Field(0.25, description="weight of the loss of the auxiliary head")
    auxiliary_constraint: bool = Field(
        True,
        description="give boxes of the auxiliary head the range of the lead head, which excludes some coarse cells",
    )

    @model_validator(mode="after")
    def _check_varifocal(self) -> LossSettings:
        if self.objectness_loss == "varifocal" and self.objectness_pos_weight != 1:
            raise ValueError(
                f"objectness_pos_weight={self.objectness_pos_weight} cannot be combined with "
                "objectness_loss='varifocal', which has its own weights; leave objectness_pos_weight at 1"
            )
        if self.classification_loss == "varifocal" and (self.classification_pos_weight != 1 or self.label_smoothing):
            raise ValueError(
                "classification_loss='varifocal' has its own weights and targets; "
                "leave classification_pos_weight at 1 and label_smoothing at 0"
            )
        return self


class OptimSettings(Settings):
    """The optimizer, the schedule of learning rates, and the exponential moving average of the weights."""

    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        "sgd",
        description="sgd: stochastic gradient descent with momentum; adamw: AdamW; muon: Muon for weights of "
        "convolutions and AdamW for the others, with one lr0 for both, such as 0.004",
    )
    nesterov: bool = Field(True, description="use Nesterov momentum with sgd, as in the reference")
    clip_norm: ClipNorm = Field(
        AUTO_NORM,
        description="largest norm of the gradient of a step; 0: no limit; auto: 10 for models with the head "
        "detect_dfl or detect_one_to_one, and no limit for others",
    )
    schedule: Literal["scaled", "reference", "yolox", "ppyoloe"] = Field(
        "scaled",
        description="scaled: a warm-up of at most a share of the run, then a decay by step; "
        "reference: a warm-up of at least 1000 steps, then a decay by epoch; "
        "yolox: a quadratic warm-up from 0, then a cosine to lr_final, which ends with flat_share; "
        "ppyoloe: a linear warm-up from 0, then a cosine to 0 that is stopped after five sixths",
    )
    decay: Literal["cosine", "linear"] = Field(
        "cosine", description="shape of the decay of the learning rate of the schedules scaled and reference"
    )
    flat_share: float = Field(
        0.0, ge=0.0, le=0.9, description="last share of the run that has the last learning rate, with schedule: yolox"
    )
    lr0: Positive = Field(0.01, le=1000.0, description="learning rate after the warm-up, for the nominal batch")
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="factor of the learning rate of each row relative to the row after it"
    )
    lr_final: Positive = Field(0.01, le=1.0, description="last learning rate as a share of lr0")
    momentum: Probability = Field(0.937, description="momentum of SGD and of Muon, or the first beta of AdamW")
    weight_decay: NonNegative = Field(
        0.0005, le=1000.0, description="weight decay of convolution weights, for the nominal batch"
    )
    decay_biases: bool = Field(False, description="apply weight decay to biases of convolutions too")
    nominal_batch: int = Field(
        64, ge=1, le=1_000_000, description="gradients are summed over this many images for one step of the optimizer"
    )
    warmup_epochs: NonNegative = Field(3.0, le=1_000_000.0, description="length of the warm-up in epochs")
    warmup_share: Probability = Field(0.1, description="longest warm-up as a share of the run")
    warmup_momentum: Probability = Field(0.8, description="momentum at the first step")
    warmup_bias_lr: NonNegative = Field(
        0.1, le=1000.0, description="learning rate of biases at the first step of SGD, or of schedule: reference"
    )
    ema_decay: float = Field(0.9999, gt=0.0, lt=1.0, description="decay of the moving average in the long run")
    ema_ramp: Positive = Field(2000.0, le=1e9, description="number of updates over which the decay grows to ema_decay")
    ema: Literal["ramp", "corrected"] = Field(
        "ramp",
        description="ramp: the average starts at the first weights, and ema_ramp controls its decay; "
        "corrected: it starts at 0 and is corrected for this, as in PP-YOLOE",
    )


class DistilSettings(Settings):
    """Distillation: training also imitates a teacher, a model that knows the classes of the data already."""

    teacher: Path | None = Field(
        None, description="weight file of the teacher, often of a larger spec; null: no distillation"
    )
    outputs: NonNegative = Field(
        1.0,
        le=1000.0,
        description="weight of the differences between the outputs of the heads, relative to the loss of the objects; "
        "with anchors: auto, the model then has the anchors of the teacher",
    )
    features: NonNegative = Field(
        0.0,
        le=1000.0,
        description="weight of the differences between the maps that enter the heads (channel-wise distillation, "
        "Shu et al., 2021), relative to the gain of the box loss",
    )

    @property
    def is_used(self) -> bool:
        """Whether a teacher affects the training."""
        return self.teacher is not None and bool(self.outputs or self.features)


class TrainSettings(Settings):
    """One training run. Every setting can be stated for all variants of a comparison and for single ones."""

    recipe: RecipeName | None = Field(None, description="named settings of yolov7/recipes.py; stated keys override it")
    epochs: int = Field(300, ge=1, le=1_000_000, description="length of the run")
    batch_size: BatchSize = Field(
        16, description="images per step, over all workers; auto: the largest power of two that fits, by measurement"
    )
    image_size: int = Field(640, ge=32, le=8192, description="side of the square training images, pixels")
    precision: Precision = Field(
        "auto", description="auto: bfloat16 on devices that compute fast with it, otherwise float32"
    )
    anchors: AnchorMode = Field(
        "auto",
        description="spec: the spec's own; fit: fitted to the boxes; auto: those of the weights or of the spec, and "
        "fitted ones if the recall of these is under 0.98",
    )
    weights: Path | None = Field(None, description="weight file to start from; its classes may differ")
    freeze: str | None = Field(
        None,
        description="last row that is frozen; the rows before it are frozen too; pN, where no row has this name: the "
        "rows before the maps get a larger stride than 2^N",
    )
    unfreeze_epochs: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="number of first epochs in which the frozen rows are released, the last one first; 0: they stay "
        "frozen",
    )
    freeze_batch_norm: bool = Field(
        False, description="keep the statistics of batch norm of the weights that training starts from"
    )
    max_images: int = Field(
        0, ge=0, le=1_000_000_000, description="train on this many images, the same for every seed; 0: on all of them"
    )
    class_balance: Probability = Field(
        0.0, description="classes in a smaller share of the images are sampled more often"
    )
    patience: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="epochs from the best AP on the validation split to a measurement that ends the run; 0: none",
    )
    swa_epochs: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="number of last epochs whose weights are averaged; 0: the result is the moving average",
    )
    average_best: int = Field(
        0,
        ge=0,
        le=1000,
        description="number of epochs with the best AP on the validation split whose moving averages are averaged; "
        "0: one with patience, otherwise none",
    )
    channels_last: bool = Field(True, description="memory format of images and weights; affects speed")
    compile: bool = Field(False, description="compile the model with torch.compile")
    sync_batch_norm: bool = Field(False, description="share the statistics of batch norm among workers; needs GPUs")
    multi_scale: Probability = Field(0.0, description="largest variation of the training size, as a share of it")
    low_resolution_share: Probability = Field(
        0.0, description="first share of the epochs that is trained at a lower resolution"
    )
    low_resolution: float = Field(
        0.5, gt=0.0, le=1.0, description="side of the images of these epochs as a share of image_size"
    )
    close_mosaic: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description="number of last epochs without mosaic, mixup and pasted objects, and with L1 loss for the head of "
        "YOLOX; at most a fifth of the run",
    )
    validate_every: int = Field(1, ge=1, le=1_000_000, description="epochs between two validations")
    checkpoint_every: int = Field(1, ge=1, le=1_000_000, description="epochs between two checkpoints")
    checkpoint_minutes: NonNegative = Field(
        10.0, le=1_000_000.0, description="minutes between two checkpoints within an epoch"
    )
    checkpoints_kept: int = Field(
        2, ge=1, le=1000, description="number of checkpoints that are kept, in case the last one is damaged"
    )
    loader_workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        "auto", description="number of processes that prepare samples"
    )
    cache_images: Literal["auto", "memory", "disk", "none"] = Field(
        "auto", description="where decoded images are kept; auto: in memory if there is enough of it"
    )
    callbacks: tuple[CallbackName, ...] = Field(
        (), description="dotted names of own callbacks, which are called during training"
    )
    augment: AugmentSettings = AugmentSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    distil: DistilSettings = DistilSettings()

    @property
    def best_epochs(self) -> int:
        """How many of the best epochs make the final weights; 0: they do not depend on AP."""
        return self.average_best or min(self.patience, 1)

    @property
    def first_closing_epoch(self) -> int:
        """The first of the last `close_mosaic` epochs, which are without mosaic and at most a fifth of the run."""
        return self.epochs - min(self.close_mosaic, self.epochs // 5)

    @property
    def own_code(self) -> dict[str, Kind]:
        """The dotted names of own code, and what each of them is."""
        named = {self.loss.box_loss: BOX_LOSS, self.loss.assigner: ASSIGNER}
        own = {name: kind for name, kind in named.items() if is_dotted(name)}
        return own | dict.fromkeys(self.augment.plugins, AUGMENTATION) | dict.fromkeys(self.callbacks, CALLBACK)

    @model_validator(mode="before")
    @classmethod
    def _expand_recipe(cls, given: Any) -> Any:
        return expand_recipe(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _check_whole(self) -> TrainSettings:
        if self.recipe == "finetune" and self.weights is None:
            raise ValueError("recipe='finetune' starts from trained weights; name a weight file in weights")
        for name, kept in (("freeze", "rows"), ("freeze_batch_norm", "the statistics")):
            if (value := getattr(self, name)) and self.weights is None:
                raise ValueError(f"{name}={value!r} keeps {kept} of trained weights; name a weight file in weights")
        if self.unfreeze_epochs and self.freeze is None:
            raise ValueError(
                f"unfreeze_epochs={self.unfreeze_epochs} releases frozen rows; name the last one in freeze"
            )
        if self.patience and self.swa_epochs:
            raise ValueError(
                f"patience={self.patience} and swa_epochs={self.swa_epochs} exclude each other, because the last "
                "epochs of a run that may end early are not known; set one of them to 0"
            )
        if self.average_best and self.swa_epochs:
            raise ValueError(
                f"average_best={self.average_best} and swa_epochs={self.swa_epochs} exclude each other, because the "
                "final weights are the mean of either the best or the last epochs; set one of them to 0"
            )
        return self


class NmsSettings(Settings):
    """How raw maps become detections."""

    confidence: Probability = Field(0.25, description="lowest score of a detection")
    iou: Probability = Field(0.45, description="largest IoU of two detections of the same class")
    max_detections: int = Field(300, ge=1, description="largest number of detections per image")
    max_candidates: int = Field(30_000, ge=1, description="largest number of candidates per image before suppression")
    multi_label: bool = Field(
        False, description="return a detection for every class above the confidence, not only for the best class"
    )
    agnostic: bool = Field(False, description="suppress detections across classes")


COCO_NMS = NmsSettings(confidence=0.001, iou=0.65, multi_label=True)  # for COCO metrics, as in the reference
