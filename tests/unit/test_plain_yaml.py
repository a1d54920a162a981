"""Test the reader of YAML files: plain mappings are read, and everything else is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from yolov7.errors import SettingError
from yolov7.system.yaml_files import MAX_BYTES, read_yaml

ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 20)
)


def test_aliases_and_merged_mappings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &b {x: 1, y: [2, 3]}\nown: {<<: *b, x: 4}\nlist: [*b, *b]\n", encoding="utf-8")
    base = {"x": 1, "y": [2, 3]}
    assert read_yaml(path) == {"base": base, "own": {"x": 4, "y": [2, 3]}, "list": [base, base]}


def test_a_mapping_that_overrides_merged_keys_can_be_merged_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1}\nb: {c: &c {<<: *a, x: 2}}\nown: {<<: *c, y: 3}\n", encoding="utf-8")
    assert read_yaml(path)["own"] == {"x": 2, "y": 3}


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("\ufeffa: é\n".encode())
    assert read_yaml(tmp_path / "x.yaml") == {"a": "é"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: {c: 2, c: 3}", "'c' is written twice in line 2, column 11"),
        ("a: {1: x, 0x1: y}", "'0x1' is written twice"),
        ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "'<<' is written twice"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("a: 1\n\tb: 2", "line 2, column 1"),
        ("? [a, b]\n: 1", "unhashable key"),
        ("a: !!map [1]", "expected a mapping node"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!timestamp x", "is not usable YAML"),
        ("a: !!bool x", "is not usable YAML"),
        ('a: !!int ""', "is not usable YAML"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: 0x_", "invalid literal for int"),
        ("a: 0x10000000000000000", "has more than 64 bits"),
        ("a: " + "9" * 5000, "has more than 400 characters"),
        ("a: 0x" + "f" * 5000, "has more than 400 characters"),
        ("a: 1" + ":1" * 5000, "has more than 400 characters"),
        ("a: 1" + ":1" * 190 + ".5", "is not usable YAML"),
        ("a: 1.0e+" + "9" * 5000, "has more than 400 characters"),
        ("a: " + "[" * 100_000, "nested deeper than 32"),
        ("- " * 100_000, "nested deeper than 32"),
        ("a: " + "[" * 40 + "]" * 40, "nested deeper than 32"),
        ("a: &a [*a]", "nested deeper than 32"),
        ("a: &a {b: *a}", "nested deeper than 32"),
        ("a: &a {<<: *a}", "nested deeper than 32"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 40)), "nested deeper than 32"),
        (ALIASES, "more than 20,000 values"),
        (MERGES, "more than 20,000 values"),
        ("a: [" + "1," * 30_000 + "]", "more than 20,000 values"),
        ("a: \x00", "special characters are not allowed"),
        ('a: "x\\0y"', "contains a null character"),
        ('a: "\\uD800"', "half of a surrogate pair"),
        ('"\\0": 1', "contains a null character"),
        ("#" * MAX_BYTES + "\na: 1", "is larger than 1 MiB"),
        ("", "must contain a mapping of names to values; it contains NoneType"),
        ("- 1", "it contains list"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=r"x\.yaml") as caught:
        read_yaml(path)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    for content in (b"a: 1\nb: \xff", "a: 1\n".encode("utf-16")):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(SettingError, match=r"x\.yaml is not text in UTF-8 \(byte 0xff in line \d\)"):
            read_yaml(tmp_path / "x.yaml")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")  # opening it would wait forever
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("fifo.yaml", "zero.yaml", "folder.yaml", "y.yaml", "n" * 400, "nul\0"):
        with pytest.raises(SettingError, match="does not exist or is not a regular file"):
            read_yaml(tmp_path / name)
