"""The one reader of YAML: plain mappings, and a reason for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolov7.system.yaml_files import read_yaml

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))


def test_aliases_and_merged_mappings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &b {x: 1, y: [2, 3]}\nown: {<<: *b, x: 4}\nlist: [*b, *b]\n", encoding="utf-8")
    base = {"x": 1, "y": [2, 3]}
    assert read_yaml(path) == {"base": base, "own": {"x": 4, "y": [2, 3]}, "list": [base, base]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: {c: 2, c: 3}", "'c' is written twice in line 2, column 11"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("a: 1\n\tb: 2", "line 2, column 1"),
        ("? [a, b]\n: 1", "unhashable key"),
        ("a: !!map [1]", "a mapping was expected"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!bool x", "is not YAML"),
        ('a: !!int ""', "is not YAML"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: 0x_", "invalid literal for int"),
        ("a: " + "9" * 5000, "integer string conversion"),
        ("a: 0x" + "f" * 5000, "an integer of 20000 bits"),
        ("a: " + "[" * 1000, "recursion"),
        ("a: " + "[" * 40 + "]" * 40, "nested deeper than 32"),
        ("a: &a [*a]", "nested deeper than 32"),
        ("a: &a {b: *a}", "nested deeper than 32"),
        (BOMB, "more than 20,000 values"),
        ("a: \x00", "special characters are not allowed"),
        ("", "must hold a mapping of names to values; it holds NoneType"),
        ("- 1", "it holds list"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.yaml") as caught:
        read_yaml(path)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match=r"x\.yaml is not YAML: .*utf-8"):
        read_yaml(tmp_path / "x.yaml")
    for name in ("y.yaml", "n" * 400, "nul\0"):
        with pytest.raises(ValueError, match="does not exist"):
            read_yaml(tmp_path / name)
