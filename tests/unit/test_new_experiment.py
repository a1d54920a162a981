"""Experiments and projects for data of one's own: which settings are chosen, and which files are written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.artifacts.stage_code import project_pipeline, stage_code
from pipeline.commands import new_experiment as module
from pipeline.commands.experiments import use_experiment
from pipeline.commands.init_project import init_project
from pipeline.commands.new_experiment import new_experiment
from pipeline.experiment import Experiment, load_experiment
from tests.unit.data_files import write_coco, write_image, write_voc, write_yolo
from yolov7.errors import ArtifactError, DataError, SettingError
from yolov7.nn.model import DetectionModel
from yolov7.spec.anchor_free import with_anchor_free_head, with_one_to_one_head
from yolov7.spec.graph import ModelSpec
from yolov7.spec.spec_files import load_spec
from yolov7.weights.foreign.reference import export_checkpoint
from yolov7.weights.weight_files import save_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to an empty folder, on a machine without a GPU and with 8 GiB of free memory."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(module, "_gpu_memory", lambda: None)
    monkeypatch.setattr(module, "_free_memory", lambda: 8 * 2**30)


def use(name: str) -> Experiment:
    use_experiment(name, force=True)
    return load_experiment()


def write_large(root: Path, *, side: int) -> Path:
    """Write a COCO data set of two images of 1920 x 1080 whose boxes have the same side."""
    rows = [{"image_id": image, "bbox": [50 * n, 10, side, 2 * side]} for image in (1, 2) for n in range(5)]
    path = write_coco(root, images=[{"skip": True}] * 2, annotations=rows)
    write_image(root / "images/0.jpg", width=1920, height=1080)
    shutil.copy(root / "images/0.jpg", root / "images/1.jpg")
    return path


def test_the_file_states_the_data_and_reasons_and_can_be_used(tmp_path: Path) -> None:
    boxes = {f"{n}": [("cat", 1, 1, 30, 30), ("dog", 5, 5, 40, 38)] for n in range(3)}
    for split in ("trainval", "test"):
        write_voc(tmp_path / "my data", boxes, split=split)
    lines = new_experiment("mine", data=tmp_path / "my data")
    assert lines[0].startswith("found voc data in ")
    assert lines[1] == "3 training images with 6 objects; classes: 2"
    text = Path("experiments/mine.yaml").read_text()
    settings = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(settings) > 6
    assert all("    # " in line for line in settings)
    experiment = use("mine")
    assert (experiment.data.format, experiment.data.train, experiment.data.test) == ("voc", "trainval", "test")
    assert experiment.data.split is not None
    assert experiment.data.split.val == 0.2
    (variant,) = experiment.variants.values()
    assert (variant.spec.name, variant.spec.head.block) == ("yolov7-tiny", "detect_dfl")
    assert (variant.train.recipe, variant.train.image_size, variant.train.weights) == ("small", 320, None)
    assert "# With 2 training images, the recipe chooses:" in text
    assert "#   recipe small: epochs=400: the most epochs, although 400 of them have only 400 of " in text


def test_given_splits_are_used_and_paths_are_kept(tmp_path: Path) -> None:
    file = write_yolo(tmp_path / "yolo", {"a": "0 0.5 0.5 0.5 0.5\n"})
    file.write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    new_experiment("folder", data=tmp_path / "yolo")
    data = use("folder").data
    assert (data.format, data.path, data.val, data.split) == ("yolo", str(tmp_path / "yolo"), "val", None)
    new_experiment("file", data=file)
    assert use("file").data.path == str(file)


@pytest.mark.parametrize(("side", "size"), [(200, 320), (60, 512), (33, 960), (8, 1280)])
def test_small_boxes_need_large_images(tmp_path: Path, side: int, size: int) -> None:
    new_experiment("x", data=write_large(tmp_path / "data", side=side))
    assert use("x").variants["model"].train.image_size == size


def test_the_batch_fits_into_memory_and_the_model_to_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image_id": n + 1, "bbox": [5, 5, 30, 30]} for n in range(200)]
    write_coco(tmp_path / "data", images=[{"file_name": f"{n % 2}.jpg"} for n in range(200)], annotations=rows)

    def batch_with(gibibytes: float) -> int:
        monkeypatch.setattr(module, "_free_memory", lambda: int(gibibytes * 2**30))
        new_experiment("x", data=tmp_path / "data", size=640, force=True)
        return use("x").variants["model"].train.batch_size

    batches = [batch_with(memory) for memory in (64, 3, 1)]
    assert batches[0] == 16  # it is not stated, and so this is the default, which the recipe replaces
    assert 8 > batches[1] > batches[2]
    monkeypatch.setattr(module, "_gpu_memory", lambda: 80 * 2**30)
    new_experiment("x", data=tmp_path / "data", force=True)
    assert use("x").variants["model"].spec.name == "yolov7"


@pytest.mark.parametrize("change", [with_anchor_free_head, with_one_to_one_head])
def test_the_head_of_the_weights_is_kept(change: Callable[[ModelSpec], ModelSpec], tmp_path: Path) -> None:
    model = DetectionModel(change(load_spec("nano")), num_classes=2)
    save_weights(tmp_path / "x.safetensors", model, class_names=("a", "b"), image_size=192, training={})
    new_experiment("fine", data=write_large(tmp_path / "data", side=200), weights=tmp_path / "x.safetensors")
    assert use("fine").variants["model"].spec == model.spec


def test_weights_are_fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "nano.safetensors"
    model = DetectionModel(load_spec("nano"), num_classes=2)
    save_weights(weights, model, class_names=("a", "b"), image_size=192, training={})
    data = write_large(tmp_path / "data", side=200)
    new_experiment("fine", data=data, weights=weights)
    (variant,) = use("fine").variants.values()
    assert (variant.spec.name, variant.train.recipe, variant.train.weights) == ("nano", "small", weights)
    assert (
        "#   recipe small: optim.lr_final=0.1: as in the recipe finetune" in Path("experiments/fine.yaml").read_text()
    )
    foreign = tmp_path / "nano.pt"
    export_checkpoint(foreign, model, class_names=("a", "b"))
    new_experiment("foreign", data=data, weights=foreign)
    assert use("foreign").variants["model"].spec.name == "nano"
    with pytest.raises(ArtifactError, match=r"lost\.pt is missing"):
        new_experiment("other", data=data, weights=tmp_path / "lost.pt")
    monkeypatch.setenv("YOLOV7_CACHE", str(tmp_path))
    with pytest.raises(SettingError, match="run `yolov7 weights fetch yolov7-tiny`"):
        new_experiment("other", data=data, weights=Path("yolov7-tiny"))
    (tmp_path / "weights").mkdir()
    shutil.copy(weights, tmp_path / "weights/yolov7-tiny.safetensors")
    new_experiment("published", data=data, weights=Path("yolov7-tiny"))
    assert 'weights: "yolov7-tiny"' in Path("experiments/published.yaml").read_text()
    (tmp_path / "lost.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"lost\.pt: is damaged or not a weight file"):
        new_experiment("other", data=data, weights=tmp_path / "lost.pt")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    data = write_large(tmp_path / "data", side=200)
    new_experiment("x", data=data)
    with pytest.raises(SettingError, match=r"experiments/x\.yaml exists; choose another name, or pass --force"):
        new_experiment("x", data=data)
    with pytest.raises(SettingError, match=r"name='\.\./x' must consist of"):
        new_experiment("../x", data=data)
    with pytest.raises(SettingError, match="--size=100 must be a multiple of 32, the largest stride; try 96"):
        new_experiment("y", data=data, size=100)
    with pytest.raises(DataError, match="does not exist"):
        new_experiment("y", data=tmp_path / "nowhere")
    assert [path.name for path in Path("experiments").iterdir()] == ["x.yaml"]
    path = write_yolo(tmp_path / "yolo", {"a": "0 .5 .5 .2 .2\n"})
    path.write_text(path.read_text() + "val: images/val\n")
    with pytest.raises(DataError, match=r"split 'val' of .*images/val does not exist"):
        new_experiment("mine", data=path)


def test_data_with_nothing_to_learn_or_too_little_to_divide_are_refused(tmp_path: Path) -> None:
    none = write_coco(tmp_path / "none", images=[{}, {}], annotations=[])
    with pytest.raises(
        DataError, match=r"there is no box to learn in .* \(2 training images with 0 objects\); annotate"
    ):
        new_experiment("x", data=none)
    crowd = {"image_id": 1, "bbox": [5, 5, 9, 9], "iscrowd": 1}
    flat = {"image_id": 2, "bbox": [5, 5, 9, 0]}
    flawed = write_coco(tmp_path / "flawed", images=[{}, {}], annotations=[crowd, flat])
    with pytest.raises(DataError, match="with 2 objects; boxes need an area and must not be crowd regions"):
        new_experiment("x", data=flawed)
    box = {"image_id": 1, "bbox": [5, 5, 9, 9]}
    one = write_coco(tmp_path / "one", images=[{}, {}], annotations=[box])
    with pytest.raises(
        DataError, match=r"only 1 image of .* has a box, but 2 are needed without a validation split: one"
    ):
        new_experiment("x", data=one)
    assert not Path("experiments").exists()
    own_val = write_yolo(tmp_path / "yolo", {"a": "0 0.5 0.5 0.5 0.5\n"})
    own_val.write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    new_experiment("x", data=own_val)
    text = Path("experiments/x.yaml").read_text()
    assert "#   recipe small: batch_size=1: an epoch has only 1 image\n" in text
    assert "#   recipe small: the run has 400 steps and processes 400 images\n" in text


def test_files_of_a_project_are_those_of_the_repository() -> None:
    packaged = ROOT / "pipeline/artifacts/project"
    for name, own in {"stages.yaml": "dvc.yaml", "demo.yaml": "experiments/demo.yaml"}.items():
        assert (packaged / name).read_bytes() == (ROOT / own).read_bytes(), f"cp {own} {packaged / name}"


def test_the_pipeline_of_a_project_depends_on_digests_instead_of_code() -> None:
    assert stage_code() == {}
    stages = yaml.safe_load(project_pipeline())["stages"]
    own = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == list(own)
    for name, stage in stages.items():
        is_code = [dep.startswith(("pipeline/", "yolov7/")) for dep in own[name].get("deps", [])]
        assert (f"artifacts/resolve/code/{name}.json" in stage.get("deps", [])) == any(is_code)
        assert not any(dep.startswith(("pipeline", "yolov7")) for dep in stage.get("deps", []))
        assert {key: value for key, value in stage.items() if key != "deps"} == {
            key: value for key, value in own[name].items() if key != "deps"
        }
    Path("dvc.yaml").write_text(project_pipeline())
    digests = {path.stem: content["code"] for path, content in stage_code().items()}
    assert len(set(digests.values())) == len(digests) == len(stages) - 1


def test_init_writes_a_project_for_data(tmp_path: Path) -> None:
    data = write_large(tmp_path / "data", side=200)
    Path(".gitignore").write_text("mine\n")
    Path(".dvc").mkdir()
    lines = init_project(Path(), data=data)
    assert any("is a DVC project already" in line for line in lines)
    assert Path(".gitignore").read_text() == "mine\n"
    experiment = load_experiment()
    assert (experiment.data.format, experiment.data.train) == ("coco", "train.json")
    assert sorted(path.name for path in Path("experiments").iterdir()) == ["data.yaml", "demo.yaml"]
    assert use("demo").data.path == "data"
    assert Path(use("demo").data.path).is_dir()
    with pytest.raises(SettingError, match=r"\. has params\.yaml, dvc\.yaml, experiments already"):
        init_project(Path())
    assert lines[-1] == "next: dvc repro"
