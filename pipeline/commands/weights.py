"""The commands `import-weights` and `export-weights`: weights of other implementations in and out."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from yolov7.errors import ArtifactError, DataError, SettingError, counted, one_line, told
from yolov7.system.text_files import decode_text, read_bytes

_WEIGHTS, _CHECKPOINT = ".safetensors", ".pt"
_MAX_NAMES_FILE = 2 * 2**20  # bytes


def import_weights(file: Path, *, spec: str | None, names: Path | None, output: Path) -> str:
    """Write a file of another implementation as a weight file.

    Args:
        file: The file.
        spec: The name of a packaged spec, or the path of a spec file; None if the file fits only one.
        names: A file of class names; None if the file holds them or they are COCO's.
        output: The weight file to write.

    Returns:
        Lines that say what the weight file holds and in what it differs from the spec.

    Raises:
        SettingError: The name of the output has the wrong ending.
        ArtifactError: The file cannot be used, or fits several specs.
        DataError: The file of class names cannot be used.
        SpecError: The spec cannot be used.
    """
    from yolov7.spec.spec_files import load_spec
    from yolov7.weights.foreign.reference import import_checkpoint
    from yolov7.weights.weight_files import save_weights

    _expect_ending(output, _WEIGHTS)
    class_names = None if names is None else read_names(names)
    chosen = None if spec is None else load_spec(spec)
    weights, remarks = import_checkpoint(file, spec=chosen, class_names=class_names, take_rgb=True)
    model = weights.model
    save_weights(
        output,
        model,
        class_names=weights.class_names,
        image_size=weights.image_size,
        letterbox=weights.letterbox,
        training=weights.training,
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    classes = counted(model.num_classes, "class", "classes")
    line = f"{output}: {model.spec.name}, {num_parameters:,} parameters, {classes}"
    return "\n".join([line, *(f"{output}: {remark}" for remark in remarks)])


def export_weights(file: Path, *, output: Path) -> str:
    """Write the tensors of a weight file with the reference's names.

    Args:
        file: The weight file.
        output: The checkpoint to write.

    Returns:
        A line that says what was written.

    Raises:
        SettingError: The name of the output has the wrong ending.
        ArtifactError: The weight file cannot be used.
        SpecError: The model has a module that the reference implementation does not have.
    """
    from yolov7.weights.foreign.reference import export_checkpoint
    from yolov7.weights.weight_files import load_weights

    _expect_ending(output, _CHECKPOINT)
    weights = load_weights(file)
    try:
        export_checkpoint(output, weights.model, class_names=weights.class_names)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from None
    classes = counted(len(weights.class_names), "class", "classes")
    return f"{output}: {weights.model.spec.name}, {classes}, as {{'model': state_dict, 'names': ...}}"


def read_names(path: Path) -> tuple[str, ...]:
    """Read class names from a file.

    Args:
        path: A text file with one name per line; or the YAML file of a data set, whose `names` are a list or a mapping
            from numbers. Names that YAML would read as numbers, dates or truth values keep their text.

    Returns:
        The names, in order.

    Raises:
        DataError: The file cannot be read or holds no class names.
    """
    try:
        text = decode_text(read_bytes(path, limit=_MAX_NAMES_FILE), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({told(error)}); name a text file of class names") from None
    names = _names_of_yaml(path, text) if path.suffix.lower() in {".yaml", ".yml"} else _lines_of(text)
    if not names or not all(names):
        raise DataError(f"{path} holds no class names; write one per line, or `names: [...]` in a .yaml file")
    return tuple(names)


def _lines_of(text: str) -> list[str]:
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def _names_of_yaml(path: Path, text: str) -> list[str]:
    """Return the texts of `names`; the list is empty if they are not scalars or not numbered from 0.

    The nodes of the file are read instead of its values, so that a class can be called `no`, `1.0` or `2024-01-01`,
    and so that aliases are not expanded.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(one_line(f"{path} is not YAML: {error}")) from None
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    found = [value for key, value in entries if key.value == "names"]
    names = found[0] if len(found) == 1 else None
    if isinstance(names, yaml.MappingNode):
        by_number = {key.value: value for key, value in names.value if isinstance(key, yaml.ScalarNode)}
        nodes = [by_number.get(str(i)) for i in range(len(names.value))]
    else:
        nodes = names.value if isinstance(names, yaml.SequenceNode) else []
    return [node.value if isinstance(node, yaml.ScalarNode) else "" for node in nodes]


def _expect_ending(path: Path, ending: str) -> None:
    if path.suffix != ending:
        raise SettingError(f"output={path} must end in {ending}; try {path.with_suffix(ending)}")
