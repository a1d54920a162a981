"""Weights of the reference implementation in and out: what `import-weights` and `export-weights` do."""

from __future__ import annotations

from pathlib import Path

from yolov7.errors import DataError, told
from yolov7.system.yaml_files import read_yaml

_WEIGHTS, _CHECKPOINT = ".safetensors", ".pt"


def import_weights(file: Path, *, spec: str, names: Path | None, output: Path) -> str:
    """Writes a reference checkpoint as a weight file; says what it holds, and in what it differs from the spec."""
    from yolov7.spec.spec_files import load_spec
    from yolov7.weights.foreign.reference import import_checkpoint
    from yolov7.weights.weight_files import save_weights

    _expect_ending(output, _WEIGHTS)
    class_names = None if names is None else read_names(names)
    weights, remarks = import_checkpoint(file, spec=load_spec(spec), class_names=class_names)
    model = weights.model
    save_weights(
        output,
        model,
        class_names=weights.class_names,
        image_size=weights.image_size,
        training=weights.training,
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    line = f"{output}: {model.spec.name}, {num_parameters:,} parameters, {model.num_classes} classes"
    return "\n".join([line, *(f"{output}: {remark}" for remark in remarks)])


def export_weights(file: Path, *, output: Path) -> str:
    """Writes a weight file's tensors under the reference's names; says what it wrote."""
    from yolov7.weights.foreign.reference import export_checkpoint
    from yolov7.weights.weight_files import load_weights

    _expect_ending(output, _CHECKPOINT)
    weights = load_weights(file)
    try:
        export_checkpoint(output, weights.model, class_names=weights.class_names)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    num_classes = len(weights.class_names)
    return f"{output}: {weights.model.spec.name}, {num_classes} classes, as {{'model': state_dict, 'names': ...}}"


def read_names(path: Path) -> tuple[str, ...]:
    """Class names: the lines of a text file, or `names` of a data set's YAML file, a list or a mapping from numbers."""
    if path.suffix in {".yaml", ".yml"}:
        names = read_yaml(path).get("names")
        listed = [names.get(i) for i in range(len(names))] if isinstance(names, dict) else names
    else:
        listed = _read_lines(path)
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise DataError(f"{path} holds no class names; write one a line, or `names: [...]` in a .yaml file")
    return tuple(listed)


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({told(error)}); name a text file of class names") from None


def _expect_ending(path: Path, ending: str) -> None:
    if path.suffix != ending:
        raise ValueError(f"output={path} must end in {ending}; try {path.with_suffix(ending)}")
