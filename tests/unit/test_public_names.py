"""The names that `import yolov7` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import yolov7


@pytest.mark.parametrize("name", yolov7.__all__)
def test_every_public_name_can_be_imported_and_is_listed(name: str) -> None:
    assert getattr(yolov7, name) is not None
    assert name in dir(yolov7)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Detecter'"):
        _ = yolov7.Detecter  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, yolov7; dir(yolov7); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
