"""Every file of experiments/ is a complete parameter file, and `use` puts it in place without losing edits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.commands.experiments import list_experiments, use_experiment
from pipeline.experiment import load_experiment
from pipeline.report.paper.counting import paper_models
from pipeline.report.paper.printed import printed_table
from pipeline.stages.resolve import resolve
from yolov7.data.synthetic.coco_miniature import write_coco_miniature
from yolov7.errors import ArtifactError, SettingError
from yolov7.weights.published import published_weights

ROOT = Path(__file__).parents[2]
NAMES = [path.stem for path in sorted((ROOT / "experiments").glob("*.yaml"))]
WITH_ROWS = ["table1", "table2", "table9"]
ON_COCO = [name for name in NAMES if name.startswith("table")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the experiments and nothing else, whose path has spaces and accents."""
    folder = tmp_path / "my próject"
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_coco_miniature(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_ROWS])
def test_an_experiment_is_valid_and_its_specs_build(name: str, project: Path) -> None:
    use_experiment(name, data=project)
    params = load_experiment()
    for variant in params.variants.values():
        assert variant.spec.rows


def test_the_parameters_in_place_are_those_of_the_demo() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "experiments" / "demo.yaml").read_text()


def test_experiments_are_listed_with_a_description(project: Path) -> None:
    assert [line.split()[0] for line in list_experiments()] == NAMES
    assert all(len(line.split()) > 3 for line in list_experiments())


def test_unsaved_edits_are_not_overwritten(project: Path) -> None:
    use_experiment("demo")
    edited = Path("params.yaml").read_text().replace("seeds: [0]", "seeds: [5]")
    Path("params.yaml").write_text(edited)
    with pytest.raises(SettingError, match="edits that are not saved"):
        use_experiment("bccd", data=project)
    assert Path("params.yaml").read_text() == edited
    use_experiment("bccd", data=project, force=True)
    assert load_experiment().data.format == "voc"


def test_the_data_folder_is_filled_in_and_survives_switching(project: Path) -> None:
    use_experiment("bccd", data=project)
    assert Path(load_experiment().data.path) == project
    use_experiment("demo")
    assert load_experiment().data.format == "synthetic"


def test_an_experiment_without_its_data_says_how_to_name_them(project: Path) -> None:
    with pytest.raises(SettingError, match="--data FOLDER`, or set YOLOV7_DATA"):
        use_experiment("bccd")
    with pytest.raises(SettingError, match="is not a folder"):
        use_experiment("bccd", data=Path("nowhere"))


@pytest.mark.parametrize("name", ["dem", "demo.yaml"])
def test_an_unknown_experiment_names_a_similar_one(name: str, project: Path) -> None:
    with pytest.raises(SettingError, match="did you mean 'demo'"):
        use_experiment(name)


@pytest.mark.parametrize(
    "name",
    [
        "2017",
        "no",
        "1e3",
        "a: b #c",
        "${data.path}",
        'it\'s "quoted"',
        "{x} [y] *z* &w !v %u @t `s`",
        " leading and trailing ",
        "図書 größe 😀",
        "tab\tand\nline",
        "x" * 200 + " " + "y" * 50,
        "/".join(["a long path with spaces"] * 20),
    ],
)
def test_any_folder_of_data_is_written_so_that_yaml_reads_it_back(name: str, project: Path) -> None:
    folder = project / name
    folder.mkdir(parents=True)
    for path in (folder, Path(name)):
        use_experiment("bccd", data=path, force=True)
        assert load_experiment().data.path == str(path)
        text = Path("params.yaml").read_text(encoding="utf-8")
        assert YAML(typ="safe").load(text)["data"]["path"] == str(path)  # the library with which DVC reads it
        assert text.count("\n") == (project / "experiments/bccd.yaml").read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize("name", ["demo", None])
def test_outside_a_clone_use_says_where_to_run_it(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="run this in the top folder of a clone of the project"):
        use_experiment(name) if name else list_experiments()


def test_only_files_of_experiments_can_be_used(project: Path) -> None:
    Path("secret.yaml").write_text("a: 1\n")
    with pytest.raises(SettingError, match=r"there is no experiment '\.\./secret'"):
        use_experiment("../secret")


def test_a_mistake_in_an_experiment_names_its_own_file(project: Path) -> None:
    Path("experiments/mine.yaml").write_text("variants: {nano: {spec: nano}}\ntrian: {}\n")
    with pytest.raises(SettingError, match=r"^experiments/mine\.yaml: trian: unknown key"):
        use_experiment("mine")
    Path("experiments/mine.yaml").write_bytes("# größe\n".encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"^experiments/mine\.yaml is not UTF-8"):
        use_experiment("mine")
    assert "mine" in "".join(list_experiments())
    assert not Path("params.yaml").exists()


@pytest.mark.parametrize("name", WITH_ROWS)
def test_every_row_of_the_paper_that_has_a_spec_has_its_variant_at_the_papers_settings(
    name: str, project: Path
) -> None:
    use_experiment(name, data=project)
    variants = load_experiment().variants.values()
    models = paper_models()
    rows = [row for row in printed_table(name).rows if (row.model, row.size) in models]
    wanted = {(models[row.model, row.size or 0].spec, row.size) for row in rows}
    assert {(variant.declared["spec"], variant.train.image_size) for variant in variants} == wanted
    for variant in variants:
        is_p6 = variant.train.image_size == 1280
        assert variant.train.epochs == 300
        assert variant.ray.workers == (8 if is_p6 else 4)
        assert variant.train.batch_size % variant.ray.workers == 0
        if variant.name.startswith(("yolov7", "yolor", "yolov4-csp")):
            assert variant.train.batch_size == 128
            assert variant.train.optim.lr_final == (0.2 if is_p6 else 0.01 if "tiny" in variant.name else 0.1)
            assert variant.train.augment.mixup == (0.05 if "tiny" in variant.name else 0.15)
        elif variant.name.startswith("ppyoloe"):
            assert variant.train.optim.lr0 == pytest.approx(0.01 * variant.train.batch_size / 64)
        else:
            assert (variant.train.batch_size, variant.train.optim.lr0) == (64, 0.01)


@pytest.mark.parametrize("name", ON_COCO)
def test_every_experiment_on_coco_resolves_on_the_miniature(name: str, project: Path, miniature: Path) -> None:
    assert f"on the miniature of COCO in {miniature}" in use_experiment(name, miniature=True, data=miniature)
    experiment = load_experiment()
    resolve(experiment)
    for variant in experiment.variants.values():
        assert (variant.train.image_size, variant.train.epochs, variant.ray.workers) == (64, 1, 1)
        assert Path(f"artifacts/resolve/train/{variant.name}/0.json").is_file()


def test_the_miniature_is_drawn_and_only_an_edit_of_what_was_derived_counts_as_an_edit(project: Path) -> None:
    use_experiment("table3", miniature=True)
    assert Path("artifacts/coco-miniature/annotations/instances_val2017.json").is_file()
    use_experiment("table3", miniature=True)
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("epochs: 1", "epochs: 2"))
    with pytest.raises(SettingError, match="edits that are not saved"):
        use_experiment("demo")


def test_weights_of_a_folder_replace_trainings(project: Path) -> None:
    Path("own").mkdir()
    for file in ("yolov7.pt", "yolov7-tiny.safetensors", "yolov7-tiny-320.weights", "yolov7-w6.txt"):
        Path("own", file).touch()
    message = use_experiment("table1", data=project, weights="own")
    assert "and without yolov4, yolov5l, yolov4-csp, yolor-csp," in message
    experiment = load_experiment()
    found = {name: (str(one.given), one.train.image_size) for name, one in experiment.variants.items()}
    assert found == {
        "yolov7": (str(project / "own/yolov7.pt"), 640),
        "yolov7-tiny-416": (str(project / "own/yolov7-tiny.safetensors"), 416),
        "yolov7-tiny-320": (str(project / "own/yolov7-tiny-320.weights"), 320),
    }
    assert experiment.data.train == experiment.data.val == "instances_val2017"  # the images of train are not needed
    assert experiment.seeds == (0,)
    with pytest.raises(SettingError, match="--weights 'nowhere' has no weights for any variant; name the files after"):
        use_experiment("table3", data=project, weights="nowhere")


def test_published_weights_have_to_be_fetched_first(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOV7_CACHE", str(tmp_path / "cache"))
    named = YAML(typ="safe").load((ROOT / "experiments/overrides/published.yaml").read_text())
    assert set(named.values()) <= published_weights().keys()
    with pytest.raises(SettingError, match="'yolov7' are published but not fetched; run `yolov7 weights fetch yolov7`"):
        use_experiment("table2", data=project, weights="published")


def test_only_experiments_on_coco_have_a_miniature(project: Path) -> None:
    with pytest.raises(SettingError, match="--miniature is for experiments on COCO"):
        use_experiment("demo", miniature=True)
