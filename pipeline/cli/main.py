"""The entry of the command line: all commands, and how errors end them."""

from __future__ import annotations

import io
import os
import sys

from pipeline.cli import data, models, project, stages, use, weights
from pipeline.cli.app import about, app
from pipeline.ray.environment import set_ray_environment
from pipeline.ray.parent_process import end_with_dvc

__all__ = ["app", "data", "main", "models", "project", "stages", "use", "weights"]

_INTERRUPTED = 130  # the exit code after Ctrl-C
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_HOW_TO_CONTINUE = {
    "train": "; run the same command again to continue from the last checkpoint",
    "tune": "; run the same command with --resume to continue the search",
    "predict": "; the results so far are kept",
    "export": "; no file was written",
}
_SERVERS = {"serve", "ui"}  # Ctrl-C is how they end
_EXTRAS = {
    "boto3": "pipeline",
    "dvc": "pipeline",
    "fastapi": "serve",
    "jinja2": "pipeline",
    "matplotlib": "pipeline",
    "mlflow": "pipeline",
    "nncf": "openvino",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "pandas": "pipeline",
    "psutil": "pipeline",
    "pyarrow": "pipeline",
    "python_multipart": "serve",
    "ray": "pipeline",
    "sklearn": "pipeline",
    "sqlalchemy": "pipeline",
    "supervision": "supervision",
    "transformers": "zoo",
    "uvicorn": "serve",
}
"""The extra that installs a package, by the name under which the package is imported."""


def main() -> None:
    """Run the command that the arguments name.

    Errors that the user can correct end in one line and exit code 2. Any other error is a bug in this project: it shows
    its traceback and ends with exit code 1.
    """
    end_with_dvc()
    set_ray_environment()  # before torch and Ray are imported
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own messages describe faults in images
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in files may have characters that a terminal lacks
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _end_interrupted()
        raise
    except KeyboardInterrupt:
        _end_interrupted()
    except Exception as error:
        if os.environ.get("YOLOV7_TRACEBACK"):
            raise
        _end_with(error)


def _end_interrupted() -> None:
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    _fail("stopped" if command in _SERVERS else f"interrupted{_HOW_TO_CONTINUE.get(command, '')}", code=_INTERRUPTED)


def _end_with(error: Exception) -> None:
    from yolov7.errors import UserError, is_mendable, told

    named_file = isinstance(error, _FILE_ERRORS) and error.filename is not None
    if isinstance(error, UserError) or is_mendable(error) or named_file:
        _fail(told(error))
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in _EXTRAS:
        _fail(f"this needs the package {package}; install it with: pip install 'yolov7-pipeline[{_EXTRAS[package]}]'")
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        reason = told(error) if str(error) else "the memory of this machine is exhausted"
        _fail(f"out of memory: {reason}; use a smaller batch or image size, or close other programs")
    import traceback

    traceback.print_exception(error)
    name, where = about()
    _fail(f"this is a bug in {name}; please report it {where} with the traceback above", code=1)


def _fail(message: str, *, code: int = 2) -> None:
    print(f"yolov7: {message}", file=sys.stderr)
    sys.exit(code)
