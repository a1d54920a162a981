"""The command `init`: make a folder a project, in which `dvc repro` works with the installed package."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.artifacts.stage_code import demo_text, project_pipeline
from pipeline.commands.experiments import FOLDER
from pipeline.commands.new_experiment import describe_experiment
from pipeline.params import PARAMS_FILE
from yolov7.data.find_data import find_data
from yolov7.errors import SettingError
from yolov7.system.files import write_whole

_OWN = (PARAMS_FILE, "dvc.yaml", str(FOLDER))
_DATA = "data"
_README = "The demo draws its images; nothing is read from this folder. DVC needs it because the demo names it.\n"
_GIT_IGNORED = "/artifacts/\n/runs/\n/mlruns/\n/mlartifacts/\n/mlflow.db*\n"
_DVC_IGNORED = "__pycache__\n*.pyc\n*.so\n"


def init_project(folder: Path, *, data: Path | None = None) -> list[str]:
    """Write the files of a project; other files of the folder stay as they are.

    Args:
        folder: The folder; it is created if it is missing.
        data: A data set for which settings are chosen; None for the demo, which draws its images.

    Returns:
        Lines that say what was done.

    Raises:
        SettingError: If the folder is a project already.
        DataError: If no data are found.
    """
    if present := [name for name in _OWN if (folder / name).exists()]:
        raise SettingError(f"{folder} has {', '.join(present)} already; name an empty folder")
    demo = re.sub(
        r"path: \S+ +#.*", f"path: {_DATA}    # nothing is read from it: the images are drawn", demo_text(), count=1
    )
    files = {"dvc.yaml": project_pipeline(), f"{FOLDER}/demo.yaml": demo, f"{_DATA}/README.txt": _README}
    files[PARAMS_FILE] = demo
    lines = []
    if data is not None:
        found = find_data(data.absolute())
        text, facts = describe_experiment(found, named=data.absolute(), weights=None, size=None)
        name = re.sub(r"\W+", "-", found.root.name, flags=re.ASCII).strip("-_") or "own"
        files |= {PARAMS_FILE: text, f"{FOLDER}/{name}.yaml": text}
        lines = [f"found {found.description}", facts]
    ignored = {".gitignore": _GIT_IGNORED, ".dvcignore": _DVC_IGNORED}
    files |= {name: text for name, text in ignored.items() if not (folder / name).exists()}
    for name, text in files.items():
        write_whole(folder / name, text.encode())
    change = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    kept = [f"kept {name}, which exists" for name in ignored if name not in files]
    return [*lines, f"wrote {', '.join(sorted(files))}", *kept, _init_dvc(folder), f"next: {change}dvc repro"]


def _init_dvc(folder: Path) -> str:
    """Initialise DVC unless the folder belongs to a DVC project, and return what was done."""
    places = [folder.resolve(), *folder.resolve().parents]
    if (owner := next((place for place in places if (place / ".dvc").is_dir()), None)) is not None:
        return f"DVC: {owner} is a DVC project already; nothing was done"
    git = next((place for place in places if (place / ".git").exists() and shutil.which("git")), None)
    option = ["--no-scm"] if git is None else [] if git == folder.resolve() else ["--subdir"]
    command = ["dvc", "init", "--quiet", *option]
    if importlib.util.find_spec("dvc") is None:
        return f"DVC is not installed: run pip install 'yolov7-pipeline[pipeline]', then `{' '.join(command)}`"
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise SettingError(f"`{' '.join(command)}` failed in {folder}: {done.stderr.strip()}; run it by hand")
    reason = "without git; for git, run `git init` and `dvc init -f`" if git is None else f"in the git repository {git}"
    return f"DVC: ran `{' '.join(command)}` {reason}"
