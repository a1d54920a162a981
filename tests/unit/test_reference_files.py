"""Files of torch.save: good ones are read, bad ones are refused, and nothing in a pickle is executed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference_files import foreign_classes, write_checkpoint, write_zip
from yolov7.errors import ArtifactError
from yolov7.spec.spec_files import load_spec
from yolov7.weights.foreign.checkpoint import read_checkpoint
from yolov7.weights.foreign.reference import import_checkpoint
from yolov7.weights.foreign.torch_file import open_torch_file

STATE = {
    "model.0.conv.weight": torch.arange(54.0).view(2, 3, 3, 3),
    "model.0.bn.weight": torch.tensor([1.5, -2.0]),
    "model.0.bn.running_mean": torch.tensor([0.25, 0.5]),
    "model.0.bn.num_batches_tracked": torch.tensor(7),
    "model.10.empty": torch.zeros(0, 3),
    "model.2.scale": torch.tensor(3.0),
}


def load(path: Path) -> dict[str, Tensor]:
    file = open_torch_file(path)
    return file.read(read_checkpoint(file).tensors)


def refusal(path: Path) -> str:
    """Return the line with which a file is refused."""
    with pytest.raises(ArtifactError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def assert_state(found: dict[str, Tensor], *, half: bool = False) -> None:
    assert list(found) == list(STATE)
    for name, tensor in STATE.items():
        expected = tensor.half() if half and tensor.is_floating_point() else tensor
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("part", ["model", "ema"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_module_gives_its_state(tmp_path: Path, zipped: bool, half: bool, part: str) -> None:
    path = write_checkpoint(
        tmp_path / "x.pt", STATE, part=part, half=half, names=["a", "b"], _use_new_zipfile_serialization=zipped
    )
    assert_state(load(path), half=half)
    assert read_checkpoint(open_torch_file(path)).class_names == ("a", "b")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_state_dicts(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pt"
    for content in (STATE, {"model": STATE, "ema": None}, {"state_dict": {f"module.{k}": v for k, v in STATE.items()}}):
        torch.save(content, path, pickle_protocol=protocol)
        assert_state(load(path))


def test_ema_comes_before_model(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": other, "ema": STATE}, tmp_path / "x.pt")
    assert_state(load(tmp_path / "x.pt"))


def test_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = {"a": base[4:10].view(2, 3), "b": base.view(4, 6).t(), "c": base[::5]}
    torch.save(state, tmp_path / "x.pt")
    torch.testing.assert_close(load(tmp_path / "x.pt"), {name: view.contiguous() for name, view in state.items()})


def test_buffers_that_are_not_persistent_are_passed_over(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("grid", torch.zeros(3), persistent=False)
    torch.save({"model": module}, tmp_path / "x.pt")
    assert list(load(tmp_path / "x.pt")) == list(module.state_dict())


def test_names_of_classes_in_a_mapping(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.pt", STATE, names={0: "a", 1: "b"})
    assert read_checkpoint(open_torch_file(path)).class_names == ("a", "b")


class Attack:
    """A value whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def attacks(mark: str) -> dict[str, Any]:
    """Return contents that would create the file `mark` if their pickle were executed."""
    command, code = f"touch {mark}", f"open({mark!r}, 'w').close()"
    return {
        "system": Attack(os.system, command),
        "nested": {"model": [{"x": (1, [Attack(os.system, command)])}]},
        "state": {**STATE, "model.3.bias": Attack(exec, code)},
        "popen": Attack(subprocess.Popen, ["touch", mark]),
        "eval": Attack(eval, code),
        "import": Attack(__import__, "antigravity"),
        "getattr": Attack(getattr, "x", "upper"),
        "torch": Attack(torch.load, mark),
        "inside": Attack(torch._utils._rebuild_parameter, Attack(os.system, command), False, {}),
    }


@pytest.mark.parametrize("name", list(attacks("")))
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_refused(tmp_path: Path, name: str, zipped: bool, protocol: int) -> None:
    mark, path = tmp_path / "executed", tmp_path / "x.pt"
    content = attacks(str(mark))[name]
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert "may be malicious" in refusal(path)
    assert not mark.exists()


def test_names_of_the_standard_library_are_refused(tmp_path: Path) -> None:
    for content in (os.system, {"model": eval}, subprocess.Popen.__new__(subprocess.Popen)):
        torch.save(content, tmp_path / "x.pt")
        assert "which no checkpoint needs: it may be malicious" in refusal(tmp_path / "x.pt")


def test_instances_of_any_other_class_are_inert(tmp_path: Path) -> None:
    with foreign_classes() as (model, _):
        torch.save({**STATE, "settings": model()}, tmp_path / "x.pt")
    assert_state(load(tmp_path / "x.pt"))


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_of_every_python_version_are_inert(tmp_path: Path, module: str) -> None:
    """Python 3.13 pickles `pathlib._local.PosixPath`; earlier and later versions pickle `pathlib.PosixPath`."""
    torch.save({**STATE, "save_dir": Path("runs/train")}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value.replace(b"cpathlib\n", b"c" + module.encode() + b"\n"))
    assert_state(load(tmp_path / "y.pt"))


def test_tensors_are_no_larger_than_their_storages(tmp_path: Path) -> None:
    for tensor in (torch.zeros(1).expand(1000), torch.zeros(10).expand(2, 10)):
        torch.save({"a": tensor}, tmp_path / "x.pt")
        assert "larger than its storage" in refusal(tmp_path / "x.pt")


class IdPickler(pickle.Pickler):
    """A pickler that writes the text `id` as a persistent id with this value."""

    def __init__(self, file: io.BytesIO, value: Any) -> None:
        super().__init__(file, protocol=2)
        self._value = value

    def persistent_id(self, obj: Any) -> Any:
        return self._value if obj == "id" else None


def pickle_with_id(value: Any) -> bytes:
    buffer = io.BytesIO()
    IdPickler(buffer, value).dump({"model": "id"})
    return buffer.getvalue()


def test_a_call_in_a_persistent_id_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    attack = Attack(os.system, f"touch {mark}")
    for value in (attack, ("storage", attack, "0", "cpu", 1), ("storage", torch.FloatStorage, attack, "cpu", 1)):
        path = write_zip(tmp_path / "x.pt", pickle_with_id(value), _0=bytes(4))
        assert "may be malicious" in refusal(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        ("storage", torch.FloatStorage, "../../../../etc/passwd", "cpu", 1),
        ("storage", torch.FloatStorage, "0", "cpu", 2),
        ("storage", torch.FloatStorage, "0", "cpu", -1),
        ("storage", torch.FloatStorage, "0", "cpu", 2**62),
        ("storage", torch.FloatStorage, "0", "cpu", 1, ("0", 0, 1)),
        ("storage", torch.nn.Linear, "0", "cpu", 1),
        ("storage",),
        "storage",
        3,
    ],
)
def test_ids_of_no_storage_are_refused(tmp_path: Path, value: Any) -> None:
    refusal(write_zip(tmp_path / "x.pt", pickle_with_id(value), _0=bytes(4)))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_truncated_files_are_refused(tmp_path: Path, zipped: bool) -> None:
    content = write_checkpoint(tmp_path / "x.pt", STATE, _use_new_zipfile_serialization=zipped).read_bytes()
    for length in (0, 1, 3, 40, len(content) // 2, len(content) - 300, len(content) - 1):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        refusal(tmp_path / "cut.pt")


def test_flipped_bits_of_a_tensor_are_noticed(tmp_path: Path) -> None:
    torch.save({"a": torch.full((100,), 3.0)}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content.replace(struct.pack("<f", 3.0), struct.pack("<f", 3.5), 1))
    assert "CRC" in refusal(tmp_path / "x.pt")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    pickled = pickle_with_id(("storage", torch.FloatStorage, "0", "cpu", 1))
    path = write_zip(tmp_path / "x.pt", pickled, compression=zipfile.ZIP_DEFLATED, _0=bytes(4))
    assert "is compressed, which torch.save never does" in refusal(path)


def test_other_files_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("weights")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "numbers").write_bytes(pickle.dumps(3))
    torch.save({"epoch": 3, "model": None}, tmp_path / "no_model")
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(tmp_path / "script"))
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.txt", "x")
    (tmp_path / "folder").mkdir()
    expected = {
        "text": "torch.save", "pickle": "plain pickle", "numbers": "plain pickle", "no_model": "no model",
        "script": "TorchScript", "zip": "torch.save", "folder": "directory", "none": "no such file",
    }  # fmt: skip
    for name, part in expected.items():
        assert part in refusal(tmp_path / name)


def dumps(content: Any) -> bytes:
    """Return only the pickle that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return b"\x80\x02" + opening * depth + b"N" + closing * depth + b"."


def laughing_modules() -> torch.nn.Module:
    """Build thirty modules, each of which has the next one twice, so that a walk visits a billion of them."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(1))
    for _ in range(30):
        outer = torch.nn.Module()
        outer.a, outer.b = module, module
        module = outer
    return module


def write_bombs(folder: Path, *, many: int) -> list[Path]:
    """Write small files that would take gigabytes to read without limits."""
    write_zip(folder / "deflated pickle", bytes(100 * many), compression=zipfile.ZIP_DEFLATED)
    storage = pickle_with_id(("storage", torch.FloatStorage, "0", "cpu", 25 * many))
    write_zip(folder / "deflated tensor", storage, compression=zipfile.ZIP_DEFLATED, _0=bytes(100 * many))
    write_zip(folder / "long pickle", bytes(9 * 2**20))
    write_zip(folder / "dicts", b"\x80\x02" + b"}" * many + b".")
    write_zip(folder / "sets", b"\x80\x04" + b"\x8f" * many + b".")
    write_zip(folder / "marks", b"\x80\x02" + b"(" * many + b".")
    write_zip(folder / "memo", b"\x80\x04]" + b"\x94" * many + b".")
    write_zip(folder / "nones", b"\x80\x02" + b"N" * many + b".")
    write_zip(folder / "copies", b"\x80\x02}q\x00" + b"h\x00" * (many // 2) + b".")
    write_zip(folder / "far memo", b"\x80\x02]r\xff\xff\xff\x7f.")
    write_zip(folder / "long bytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.")
    write_zip(folder / "long frame", b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.")
    write_zip(folder / "deep tuples", nested(b"", b"\x85", many // 5))
    write_zip(folder / "deep key", b"\x80\x02}" + nested(b"", b"\x85", many // 5)[2:-1] + b"Ns.")
    write_zip(folder / "cycle", b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.")
    torch.save({"model": laughing_modules()}, folder / "laughs")
    state = {"model.7.m.0.bias": torch.zeros(1).expand(3 * (5 + 2**28)), "model.0.x": torch.zeros(1).expand(2**40)}
    torch.save({"model": state}, folder / "expanded")
    whole = write_zip(folder / "directory", dumps({"a": 1})).read_bytes()
    end = bytearray(whole[-22:])
    end[12:16] = struct.pack("<I", 2**31)
    (folder / "directory").write_bytes(whole[:-22] + bytes(2**18) + end)
    return sorted(folder.iterdir())


READER = """
import sys
from pathlib import Path
from yolov7.weights.foreign.reference import import_checkpoint
from yolov7.spec.spec_files import load_spec
spec = load_spec("nano")
for path in sys.argv[1:]:
    try:
        import_checkpoint(path, spec=spec)
    except ValueError as error:
        assert type(error).__name__ == "ArtifactError" and str(error).startswith(path + ": "), error
        print(str(error).removeprefix(path))
    else:
        print("read", path)
status = Path("/proc/self/status").read_text()  # rusage would count the process that started this one too
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolov7.weights.foreign.pickle_reader._MAX_STEPS", 10_000)
    for path in write_bombs(tmp_path, many=20_000):
        with pytest.raises(ArtifactError, match=f"^{path}: .+"):
            import_checkpoint(path, spec=load_spec("nano"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
def test_bombs_take_little_memory(tmp_path: Path) -> None:
    bombs = write_bombs(tmp_path, many=2 * 10**6)
    for name, content in attacks(str(tmp_path / "executed")).items():
        torch.save(content, tmp_path / f"attack {name}")
        bombs.append(tmp_path / f"attack {name}")
    whole = tmp_path / "deflated pickle"
    bombs.append(tmp_path / "cut")
    bombs[-1].write_bytes(whole.read_bytes()[:-100])
    command = [sys.executable, "-c", READER, *map(str, bombs)]
    *lines, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(bombs)
    assert all(line.startswith(": ") for line in lines), lines
    assert int(peak) < 512
    assert not (tmp_path / "executed").exists()
