"""Test that any content of params.yaml or of a specification is either accepted or refused in one line, and quickly.

The mutations come from fixed seeds. A failure names the seed that reproduces it.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.experiment import load_experiment, parse_experiment
from yolov7.errors import SpecError
from yolov7.nn.model import DetectionModel
from yolov7.spec import spec_files as spec_module
from yolov7.spec.spec_files import load_spec, resolve_spec, spec_from_json, spec_to_json
from yolov7.system.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
SPECS = sorted((ROOT / "yolov7" / "spec" / "models").rglob("*.yaml"))
assert EXPERIMENTS
assert SPECS
MAX_LENGTH = 1200  # characters of a message


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


WRONG: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 64, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400),
    float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, -0.0, 0.5, 1e-9,
    "", " ", "x", "nano", "yolov7-tiny", "1", "1e3", "nan", "None", "a\nb", "\x1b[31m", "\0", "\ud800", "日本 語",
    "é" * 300, "x" * 100_000, "../../x", "/dev/null", ".", "~", "${data.path}", "{}", "x.yaml", "y/" * 3000 + ".yaml",
    b"\xff\xfe", date(2020, 1, 2), [], {}, [[]], [None], {"a": None}, {1: 2}, {None: 3}, [1, 2, 3], [0] * 5000,
    {"depth": 1e308}, {"rule": "width", "width": 5e-324}, {"block": "conv"}, {"block": []}, _nested(20),
)  # fmt: skip

_KEYS: tuple[Any, ...] = ("", 1, None, "é", "\n", "\x1b[2J", "\ud800", "k" * 5000)

_BOMB = b"".join(
    b"%c: &%c [%s]\n" % (97 + i, 97 + i, b",".join([b"*%c" % (96 + i)] * 9) if i else b"1") for i in range(20)
)

SNIPPETS = (
    _BOMB, b"a: &a [*a]", b"&x {y: *x}", b"data: &d {path: *d}\n", b"&a ", b"*a", b"*b", b"<<: 3", b"<<: {seeds: [3]}",
    b"!!int x", b"!!float x", b'!!int ""', b"!!bool x", b"!!timestamp x", b"!!binary x", b"!!set {a}", b"!!omap [a: 1]",
    b"!!python/object/apply:os.system [id]", b"? [a, b]\n: 1", b"? {a: b}", b"2020-13-45", b"0x_", b"0b_", b"12:99:99",
    b"9" * 5000, b"0x" + b"f" * 6000, b"[" * 1000, b"{" * 500, b"- " * 900, b".inf", b".nan", b"-1", b"1e999", b"null",
    b"\x00", b"\xff\xfe", b"\xc3\x28", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b'"\\ud800"', b"\t", b"\r", b"\n", b"  ",
    b"---\n", b"...\n", b"%YAML 9.9\n", b"|", b">", b"'", b'"', b"#", b":", b"- ", b"@", b"`", b"%", b"=", b"~",
    b"seeds: [0]\n", b"variants: {}\n", b"rows: {}\n", b"base: nano\n",
)  # fmt: skip


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*way, key)
        yield from _places(item, (*way, key))


def mutate_values(content: dict[Any, Any], dice: random.Random) -> dict[Any, Any]:
    """Make one to three changes: replace, remove or move a value, or rename its key."""
    changed = copy.deepcopy(content)
    for _ in range(dice.randint(1, 3)):
        places = list(_places(changed))
        if not places:
            break
        *way, last = dice.choice(places)
        parent = functools.reduce(lambda value, key: value[key], way, changed)
        match dice.choice(("replace", "replace", "replace", "remove", "move", "rename")):
            case "replace":
                parent[last] = copy.deepcopy(dice.choice(WRONG))
            case "remove":
                del parent[last]
            case "move":
                from_way = dice.choice(places)
                parent[last] = copy.deepcopy(functools.reduce(lambda value, key: value[key], from_way, changed))
            case "rename" if isinstance(parent, dict):
                key = dice.choice((str(last)[:-1] + "x", *_KEYS))
                parent[key] = parent.pop(last)
    return changed


def mutate_text(text: bytes, dice: random.Random) -> bytes:
    """Make one to three changes: insert, remove, repeat or replace bytes."""
    for _ in range(dice.randint(1, 3)):
        start = dice.randrange(len(text) + 1)
        end = min(len(text), start + dice.choice((0, 0, 1, 5, 40)))
        line = text.find(b"\n", start) + 1
        match dice.choice(("insert", "insert", "line", "cut", "repeat", "flip")):
            case "insert":
                text = text[:start] + dice.choice(SNIPPETS) + text[end:]
            case "line":
                text = text[:line] + dice.choice(SNIPPETS) + b"\n" + text[line:]
            case "cut":
                text = text[:start] + text[end:] if end > start else text[:start]
            case "repeat":
                text = text[:end] + text[start:end] * 3 + text[end:]
            case "flip":
                text = text[:start] + bytes([dice.randrange(256)]) + text[start + 1 :]
    return text


def count_accepted(attempts: Iterable[Callable[[], object]], *, refusal: type[ValueError] = SpecError) -> int:
    """Count the attempts that succeed. All others must raise `refusal` with one printable line of limited length."""
    good, bad = 0, {}
    for number, attempt in enumerate(attempts):
        try:
            attempt()
            good += 1
        except refusal as error:
            message = str(error)
            if isinstance(error, ValidationError) or not message.isprintable() or not 0 < len(message) <= MAX_LENGTH:
                bad[number] = f"{type(error).__name__}: {message!r:.300}"
        except Exception as error:  # a user would see a traceback
            bad[number] = f"{type(error).__name__}: {error!r:.300}"
    assert not bad
    return good


@pytest.fixture(autouse=True)
def _quick_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse each packaged specification only once."""
    monkeypatch.setattr(spec_module, "_load", functools.cache(spec_module._load))


def test_values_of_params() -> None:
    contents = [read_yaml(path) for path in EXPERIMENTS]
    mutated = (mutate_values(contents[i % len(contents)], random.Random(i)) for i in range(1000))
    attempts = (partial(parse_experiment, content, source="params.yaml") for content in mutated)
    good = count_accepted(attempts, refusal=ValueError)
    assert 50 < good < 950


def test_text_of_params(tmp_path: Path) -> None:
    texts = [path.read_bytes() for path in EXPERIMENTS]
    paths = _written(tmp_path, (mutate_text(texts[i % len(texts)], random.Random(i)) for i in range(300)))
    attempts = (partial(load_experiment, path) for path in paths)
    assert 10 < count_accepted(attempts, refusal=ValueError) < 290


def _written(folder: Path, texts: Iterable[bytes]) -> Iterator[Path]:
    for number, text in enumerate(texts):
        path = folder / f"{number}.yaml"
        path.write_bytes(text)
        yield path


SMALL = {
    "rows": {
        "s1": {"block": "conv", "out": 8, "s": 2},
        "s2": {"block": "conv", "out": 8, "s": 2},
        "p2": {"block": "elan", "out": 16, "hidden": 8, "depth": 1},
        "d3": {"block": "mp", "out": 16},
        "p3": {"block": "rep_conv", "out": 16},
        "u2": {"block": "up", "from": ["p3", "p2"], "out": 16},
        "d4": {"block": "mp", "from": ["u2", "p3"], "out": 32},
        "head": {"block": "detect", "from": ["u2", "d4"], "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]]},
    },
    "scale": {"rule": "compound", "depth": 2.0},
    "swap": {"p3": {"block": "conv"}},
}


def test_values_of_specs() -> None:
    contents = [SMALL, {"base": "nano", "swap": {"p3": {"depth": 2}}}, *(read_yaml(path) for path in SPECS[:3])]
    mutated = (mutate_values(contents[i % len(contents)], random.Random(i)) for i in range(1000))
    assert 50 < count_accepted(partial(resolve_spec, content, name="mutated") for content in mutated) < 950


def test_text_of_specs(tmp_path: Path) -> None:
    texts = [path.read_bytes() for path in sorted(SPECS, key=lambda path: path.stat().st_size)[:2]]
    paths = _written(tmp_path, (mutate_text(texts[i % len(texts)], random.Random(i)) for i in range(300)))
    assert 10 < count_accepted(partial(load_spec, str(path)) for path in paths) < 290


def test_json_of_specs() -> None:
    text = spec_to_json(resolve_spec(SMALL, name="small")).encode()
    mutated = (mutate_text(text, random.Random(i)).decode(errors="replace") for i in range(500))
    assert count_accepted(partial(spec_from_json, text) for text in mutated) < 450


def test_specs_that_are_understood_can_be_built() -> None:
    built = 0
    for i in range(10_000, 10_300):
        try:
            spec = resolve_spec(mutate_values(SMALL, random.Random(i)), name="mutated")
        except SpecError:
            continue
        assert spec_from_json(spec_to_json(spec)) == spec
        with torch.device("meta"):
            DetectionModel(spec, num_classes=3)
        built += 1
    assert built > 15
