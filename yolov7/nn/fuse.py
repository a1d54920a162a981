"""Re-parameterisation: from a trained model to an equal one of plain convolutions (sections 4.1 and 4.3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from yolov7.nn.anchor_free_heads import DflHead
from yolov7.nn.blocks import ConvAct, ConvBnAct, RepConv
from yolov7.nn.heads import Detect
from yolov7.nn.model import DetectionModel
from yolov7.nn.plugin_blocks import Fusible
from yolov7.spec.auxiliary import without_auxiliary
from yolov7.spec.graph import ModelSpec

KernelAndBias = tuple[Tensor, Tensor]


@torch.no_grad()
def fuse(model: DetectionModel) -> DetectionModel:
    """Return an equal model with batch norms, branches and implicit vectors folded into plain convolutions.

    Args:
        model: The model, which stays unchanged.

    Returns:
        A new model in evaluation mode, without an auxiliary head; a copy if the model is fused already.
    """
    return fuse_in_place(model if model.spec.head.taps else copy.deepcopy(model))


@torch.no_grad()
def fuse_in_place(model: DetectionModel) -> DetectionModel:
    """Return an equal model as `fuse` does, without a copy: the given model must not be used any more.

    Args:
        model: The model.

    Returns:
        The fused model in evaluation mode, without an auxiliary head.
    """
    fused = (strip_auxiliary(model) if model.spec.head.taps else model).eval()
    _fuse_children(fused)
    fused.fused = True
    return fused


def strip_auxiliary(model: DetectionModel) -> DetectionModel:
    """Return a copy without the auxiliary head, which only training needs.

    Args:
        model: The model, which stays unchanged.

    Returns:
        The copy; its specification has no auxiliary head either.
    """
    state = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("head.auxiliary_")}
    return rebuild(model, spec=without_auxiliary(model.spec), state=state)


def rebuild(model: DetectionModel, *, spec: ModelSpec, state: Mapping[str, Tensor]) -> DetectionModel:
    """Build a model of another specification for the same classes from given tensors.

    Args:
        model: The model whose classes, anchors, mode and fused state are taken over.
        spec: The specification of the new model.
        state: Its tensors, which are not copied.

    Returns:
        The new model.
    """
    with torch.device("meta"):
        new = DetectionModel(spec, num_classes=model.num_classes)
        if model.fused:
            new = fuse(new)
    new.load_state_dict(state, assign=True)
    new.anchors_px = model.anchors_px.clone()
    return new.train(model.training)


def fold_norm(kernel: Tensor, norm: nn.BatchNorm2d) -> KernelAndBias:
    """Fold a batch norm into the convolution without bias before it.

    Args:
        kernel: Kernel (out, in, k, k).
        norm: The batch norm.

    Returns:
        Kernel (out, in, k, k) and bias (out,) in float64.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if kernel.is_meta:
        return kernel, norm.bias  # on the meta device, only shapes matter
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return kernel.double() * scale.view(-1, 1, 1, 1), norm.bias.double() - norm.running_mean.double() * scale


def fuse_conv(block: ConvBnAct) -> ConvAct:
    """Fold the batch norm of a block.

    Args:
        block: The block in evaluation mode.

    Returns:
        The fused block.
    """
    return ConvAct(_with_bias(block.conv, *fold_norm(block.conv.weight, block.bn)), block.act)


def fuse_rep_conv(block: RepConv) -> ConvAct:
    """Add all branches to one 3x3 convolution; the 1x1 kernels are in its centre.

    Args:
        block: The block in evaluation mode.

    Returns:
        The fused block.
    """
    dense, pointwise = (_conv_and_norm(branch) for branch in (block.dense, block.pointwise))
    kernel, bias = fold_norm(dense[0].weight, dense[1])
    kernel_1x1, bias_1x1 = fold_norm(pointwise[0].weight, pointwise[1])
    kernel = kernel + nn.functional.pad(kernel_1x1, [1, 1, 1, 1])
    bias = bias + bias_1x1
    if block.identity is not None:
        unit = torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)[..., None, None]
        unit = unit.repeat(dense[0].groups, 1, 1, 1)
        kernel_identity, bias_identity = fold_norm(unit, block.identity)
        kernel = kernel + nn.functional.pad(kernel_identity, [1, 1, 1, 1])
        bias = bias + bias_identity
    return ConvAct(_with_bias(dense[0], kernel, bias), block.act)


def fuse_detect(head: Detect) -> Detect:
    """Fold the implicit vectors of a head into its convolutions: b' = (b + W ia) im, W' = W im.

    Args:
        head: The head, which is changed in place.

    Returns:
        The same head.
    """
    for i in range(len(head.ia)):
        head.convs[i] = _fold_implicit(head.convs[i], add=head.ia[i], multiply=head.im[i])
    head.ia, head.im = nn.ParameterList(), nn.ParameterList()
    return head


def fuse_dfl_head(head: DflHead) -> DflHead:
    """Fold the implicit vectors that multiply into the convolutions before them: b' = b im, W' = W im.

    The vectors that are added stay, because the convolutions behind them have padding: no bias is equal at the border.

    Args:
        head: The head, which is changed in place.

    Returns:
        The same head.
    """
    for convs, vectors in ((head.box_convs, head.im_box), (head.class_convs, head.im_class)):
        for i in range(len(vectors)):
            convs[i] = _fold_implicit(convs[i], multiply=vectors[i])
    head.im_box, head.im_class = nn.ParameterList(), nn.ParameterList()
    return head


def _fold_implicit(conv: nn.Module, *, multiply: Tensor, add: Tensor | None = None) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    kernel, bias, scale = conv.weight.double(), conv.bias.double(), multiply.double().view(-1)
    if add is not None:
        bias = bias + kernel.flatten(1) @ add.double().view(-1)
    return _with_bias(conv, kernel * scale.view(-1, 1, 1, 1), bias * scale)


def _fuse_children(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        match child:
            case ConvBnAct():
                setattr(parent, name, fuse_conv(child))
            case RepConv():
                setattr(parent, name, fuse_rep_conv(child))
            case Detect():
                fuse_detect(child)
            case DflHead():
                _fuse_children(fuse_dfl_head(child))
            case Fusible():
                setattr(parent, name, child.fuse())
            case _:
                _fuse_children(child)


def _conv_and_norm(branch: nn.Sequential) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv, norm = branch
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return conv, norm


def _with_bias(conv: nn.Conv2d, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    """Make a convolution of the same form and precision with another kernel and a bias."""
    (side, _), (stride, _) = conv.kernel_size, conv.stride
    padding = (side - 1) // 2
    new = nn.Conv2d(conv.in_channels, conv.out_channels, side, stride, padding, groups=conv.groups, device="meta")
    new.weight = nn.Parameter(kernel.to(conv.weight.dtype), requires_grad=False)
    new.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return new
