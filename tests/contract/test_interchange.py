"""import-weights and export-weights as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.commands.weights import export_weights, import_weights, read_names
from tests.contract.test_cli import fails_in_one_line, run
from tests.reference_files import write_checkpoint
from yolov7.errors import ArtifactError, DataError, SettingError
from yolov7.nn.fuse import fuse
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.foreign.reference import reference_state
from yolov7.weights.weight_files import load_weights, save_weights

NAMES = ("red cell", "white cell", "Plättchen")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = reference_state(DetectionModel(load_spec("nano"), num_classes=3))
    return write_checkpoint(tmp_path / "last.pt", state)


def test_in_and_out_again(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    done = run(tmp_path, "import-weights", "last.pt", "--spec", "nano", "--names", "names.txt", "-o", "out.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("out.safetensors: nano, ")
    weights = load_weights(tmp_path / "out.safetensors")
    assert weights.class_names == NAMES
    export_weights(tmp_path / "out.safetensors", output=tmp_path / "again.pt")
    content = torch.load(tmp_path / "again.pt", weights_only=True)
    assert content["names"] == list(NAMES)
    assert list(content["model"])[:2] == ["model.0.conv.weight", "model.0.bn.weight"]
    import_weights(tmp_path / "again.pt", spec="nano", names=None, output=tmp_path / "again.safetensors")
    again = load_weights(tmp_path / "again.safetensors")
    assert again.class_names == NAMES
    torch.testing.assert_close(again.model.state_dict(), weights.model.state_dict(), rtol=0, atol=0)


def test_mistakes_are_one_line(tmp_path: Path, checkpoint: Path) -> None:
    wanted = ("import-weights", "last.pt", "-o", "out.safetensors")
    message = fails_in_one_line(run(tmp_path, *wanted))
    assert message.startswith("yolov7: last.pt: has 3 classes but not their names")
    message = fails_in_one_line(run(tmp_path, *wanted, "--spec", "yolov7"))
    assert message.startswith("yolov7: last.pt: does not fit spec 'yolov7' (")
    assert message.rstrip().endswith("; it fits spec 'nano'")
    assert not (tmp_path / "out.safetensors").exists()


def test_outputs_must_have_their_endings(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(SettingError, match=r"out\.pt must end in \.safetensors; try .*out\.safetensors"):
        import_weights(checkpoint, spec="nano", names=None, output=tmp_path / "out.pt")
    with pytest.raises(SettingError, match=r"must end in \.pt"):
        export_weights(checkpoint, output=tmp_path / "out.safetensors")


def test_re_parameterised_weights_are_named(tmp_path: Path) -> None:
    model = fuse(DetectionModel(load_spec("nano"), num_classes=3))
    save_weights(tmp_path / "fused.safetensors", model, class_names=NAMES, image_size=192, training={})
    with pytest.raises(ArtifactError, match=r"fused\.safetensors: re-parameterised weights have no names"):
        export_weights(tmp_path / "fused.safetensors", output=tmp_path / "out.pt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "cat\n dog \n\n"),
        ("a.names", "cat\r\ndog"),
        ("a.yaml", "nc: 2\nnames: [cat, dog]"),
        ("a.yml", "names: {0: cat, 1: dog}"),
        ("a.YAML", "x: &n [cat, dog]\nnames: *n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_names(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_names(tmp_path / name) == ("cat", "dog")


def test_names_from_older_windows_tools_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café\r\nhund".encode("cp1252"))
    assert read_names(tmp_path / "a.txt") == ("café", "hund")


def test_names_that_yaml_reads_as_other_values_keep_their_text(tmp_path: Path) -> None:
    names = ("no", "on", "1", "1.50", "0x10", "null", "~", "2024-01-01", "1_000", "NaN", "Größe", "a: b")
    quoted = (*names[:-1], "'a: b'")
    (tmp_path / "a.yaml").write_text(f"names: [{', '.join(quoted)}]", encoding="utf-8")
    assert read_names(tmp_path / "a.yaml") == names
    lines = "".join(f"  {i}: {name}\n" for i, name in enumerate(quoted))
    (tmp_path / "b.yaml").write_text(f"names:\n{lines}", encoding="utf-8")
    assert read_names(tmp_path / "b.yaml") == names


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b""),
        ("a.txt", b"\xff\xfe"),
        ("a.txt", b"x\n" * 2**21),
        ("a.yaml", b"names: 3"),
        ("a.yaml", b"names: {1: a}"),
        ("a.yaml", b"names: {0: a, 0: b}"),
        ("a.yaml", b"names: [a]\nnames: [b]"),
        ("a.yaml", b"names: [[a], b]"),
        ("a.yaml", b"names: [a, '']"),
        ("a.yaml", b"names: [a"),
        ("a.yaml", b"[" * 10**5),
        ("a.yaml", b"a"),
    ],
)
def test_files_of_no_names(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_names(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.txt"):
        read_names(tmp_path / "none.txt")
