"""Every file of experiments/ is a complete parameter file, and `use` puts it in place without losing edits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.commands.experiments import list_experiments, use_experiment
from pipeline.experiment import load_experiment

ROOT = Path(__file__).parents[2]
NAMES = [path.stem for path in sorted((ROOT / "experiments").glob("*.yaml"))]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the experiments and nothing else, and a path that is awkward."""
    folder = tmp_path / "my próject"
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_valid_and_its_specs_build(name: str, project: Path) -> None:
    use_experiment(name, data=project)
    params = load_experiment()
    for variant in params.variants.values():
        assert variant.spec.rows


def test_the_parameters_in_place_are_those_of_the_demo() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "experiments" / "demo.yaml").read_text()


def test_experiments_are_listed_with_what_they_are(project: Path) -> None:
    assert [line.split()[0] for line in list_experiments()] == NAMES
    assert all(len(line.split()) > 3 for line in list_experiments())


def test_unsaved_edits_are_not_overwritten(project: Path) -> None:
    use_experiment("demo")
    edited = Path("params.yaml").read_text().replace("seeds: [0]", "seeds: [5]")
    Path("params.yaml").write_text(edited)
    with pytest.raises(ValueError, match="edits that are in no file"):
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
    with pytest.raises(ValueError, match="--data FOLDER, or set YOLOV7_DATA"):
        use_experiment("bccd")
    with pytest.raises(ValueError, match="does not exist"):
        use_experiment("bccd", data=Path("nowhere"))


def test_an_unknown_experiment_names_the_nearest(project: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'demo'"):
        use_experiment("dem")
