"""Pickles that were made to break their reader are refused in one line, in little time and memory."""

from __future__ import annotations

import pickle
import pickletools
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.reference_files import write_zip
from yolov7.errors import ArtifactError
from yolov7.spec.spec_files import load_spec
from yolov7.weights.foreign.pickle_reader import (
    _INERT_CALLS,
    _MAPPINGS,
    _REBUILD_PARAMETER,
    _REBUILD_TENSOR,
    _SEQUENCES,
)
from yolov7.weights.foreign.reference import import_checkpoint

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
FEW, MANY = 2_000, 250_000  # repetitions in quick tests, and as many as a pickle may have bytes for
SECONDS = 20


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + last.encode() + b"\n"


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def shared_tuples(depth: int = 60) -> bytes:
    """A tuple that holds the same tuple twice, and so on: few bytes, but 2**60 values for whoever visits them."""
    return b")" + b"".join(put(i) + get(i) + b"\x86" for i in range(depth))


def long_list(items: int) -> bytes:
    return b"](" + b"N" * items + b"e"


def long_mapping(items: int, *, value: bytes = b"N") -> bytes:
    return b"}(" + b"".join(text(f"k{i}") + value for i in range(items)) + b"u"


def module_of(*attributes: bytes) -> bytes:
    """An instance of a class with these attributes, each a key and a value."""
    return named("a.Module") + b")\x81}(" + b"".join(attributes) + b"ub"


def storage(key: bytes = text("0"), *, size: bytes = number(1)) -> bytes:
    return b"(" + text("storage") + named("torch.FloatStorage") + key + text("cpu") + size + b"tQ"


def tensor(*, offset: bytes = b"K\x00", shape: bytes = b"K\x01\x85", strides: bytes = b"K\x01\x85") -> bytes:
    rest = b"\x89" + b"}"
    return named("torch._utils._rebuild_tensor_v2") + b"(" + storage() + offset + shape + strides + rest + b"tR"


def colliding_keys(items: int) -> bytes:
    """Integers that all have the same hash, so that adding one to a mapping compares it with all others."""
    return b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, items)) + b"u"


def repeat(first: bytes, again: bytes, times: int) -> bytes:
    return first + put(0) + b"0" + b"(" + again * times + b"1"


def in_zip(many: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and programs of data.pkl in a zip."""
    yield from sharing()
    yield from repeating(many)
    yield from with_wrong_values(many)
    yield from of_modules(many)
    yield from of_calls_and_opcodes()


FIRST = b"h\x00"  # the value that `repeat` remembers


def sharing() -> Iterator[tuple[str, bytes]]:
    yield "shared tuples", program(shared_tuples())
    yield "shared tuples as a model", program(b"}", text("model"), shared_tuples(), b"s")
    yield "shared tuples as a key", program(b"}", shared_tuples(), b"Ns")
    yield "shared tuples as an id", program(shared_tuples(), b"Q")
    yield "shared tuples as a storage key", program(storage(shared_tuples()))
    yield "shared tuples as a storage size", program(storage(size=shared_tuples()))
    yield "shared tuples as a shape", program(tensor(shape=shared_tuples()))
    yield "shared tuples as an offset", program(tensor(offset=shared_tuples()))
    yield "shared tuples as a state", program(named("a.B"), b")\x81", shared_tuples(), b"b")
    yield "shared tuples as names", program(b"}(", text("names"), shared_tuples(), text("x"), tensor(), b"u")
    yield "shared tuples as an argument", program(named("builtins.list"), shared_tuples(), b"R")
    yield "shared tuples as a global", program(shared_tuples(), shared_tuples(), b"\x93")
    yield "shared lists", program(b"]", *(put(i) + get(i) + b"\x86" for i in range(60)))


def repeating(many: int) -> Iterator[tuple[str, bytes]]:
    wide = min(many, 50_000)
    for name in sorted(_SEQUENCES):
        again = named(name) + FIRST + b"\x85R"
        yield f"copies by {name}", program(repeat(long_list(wide), again, many // 10), b"N")
    again = named("torch._utils._rebuild_tensor_v2") + b"(" + storage() + b"K\x00" + FIRST + FIRST + b"tR"
    yield "long shapes", program(repeat(long_list(wide), again, many // 100), b"N")
    yield "long states", program(repeat(long_mapping(wide), named("a.B") + b")\x81" + FIRST + b"b", many // 10), b"N")
    yield "long globals", program(repeat(text("x" * 10 * many), FIRST + FIRST + b"\x93", many), b"N")
    yield "long global", program(named("a." + "x" * many))
    yield "colliding keys", program(colliding_keys(many))
    yield "huge keys", program(b"}(", *(number(2**1000 + i) + b"N" for i in range(min(many, 20_000))), b"u")


def with_wrong_values(many: int) -> Iterator[tuple[str, bytes]]:
    yield "huge sides", program(tensor(shape=b"(" + number(2**2000) * 8 + b"t", strides=b"(" + b"K\x01" * 8 + b"t"))
    yield "many sides", program(tensor(shape=b"(" + b"K\x01" * many + b"t", strides=b"(" + b"K\x01" * many + b"t"))
    yield "negative side", program(tensor(shape=number(-1) + b"\x85"))
    yield "fraction as a side", program(tensor(shape=b"G" + struct.pack(">d", 1.5) + b"\x85"))
    yield "text as a shape", program(tensor(shape=text("abc")))
    yield "number as a shape", program(tensor(shape=b"K\x01"))
    yield "mapping as a shape", program(tensor(shape=b"}"))
    yield "huge storage", program(storage(size=number(2**2000)))
    yield "storages", program(b"(", *(storage(text(str(i))) for i in range(min(many, 20_000))), b"t")


def of_modules(many: int) -> Iterator[tuple[str, bytes]]:
    wide = min(many, 50_000)
    buffers = text("_buffers") + long_mapping(wide)
    temporary = text("_non_persistent_buffers_set")
    yield "many temporary buffers", program(module_of(buffers, temporary + long_list(wide)))
    yield "a number of temporary buffers", program(module_of(text("_buffers") + long_mapping(3), temporary + b"K\x03"))
    yield "no parameters", program(module_of(text("_parameters") + b"K\x03", text("_modules") + b"]"))
    inner = module_of(text("_parameters") + long_mapping(wide))
    children = (text(f"m{i}") + FIRST for i in range(min(many, 15_000)))
    yield (
        "shared children",
        program(inner, put(0), b"0", module_of(text("_modules") + b"}(" + b"".join(children) + b"u")),
    )
    name = text("x" * many)
    nested = module_of(text("_parameters") + long_mapping(10, value=tensor()))
    for _ in range(20):
        nested = module_of(text("_modules") + b"}(" + name + nested + b"u")
        if len(nested) > 3 * 2**20:
            break
    yield "long names", program(nested)
    cycle = named("a.B") + b")\x81" + put(0) + b"}" + text("_modules") + b"}" + text("m") + get(0) + b"ssb"
    yield "a module within itself", program(cycle)
    yield "a list within itself", program(b"]", put(0), get(0), b"a")
    yield "a mapping within itself", program(b"}", put(0), text("model"), get(0), b"s")
    for value, what in ((b"K\x03", "number"), (b"N", "None"), (text("x"), "text"), (b"]", "list"), (b")", "tuple")):
        yield f"{what} as content", program(value)
        yield f"{what} as a model", program(b"}", text("model"), value, b"s")


def of_calls_and_opcodes() -> Iterator[tuple[str, bytes]]:
    functions = _INERT_CALLS | _MAPPINGS | _SEQUENCES | _REBUILD_PARAMETER | _REBUILD_TENSOR
    for function in sorted(functions):
        for arguments in (b")", b"N\x85", b"K\x01\x85", text("x") + b"\x85", b"NNNNt"):
            mark = b"(" if arguments == b"NNNNt" else b""
            yield f"{function} of {arguments!r}", program(named(function), mark, arguments, b"R")
    for opcode in pickletools.opcodes:
        yield f"opcode {opcode.name} alone", opcode.code.encode("latin-1")
        yield f"opcode {opcode.name} on nothing", program(opcode.code.encode("latin-1"))
        yield f"opcode {opcode.name} on a mapping", program(b"}", opcode.code.encode("latin-1"), b"\xff" * 8)


def legacy(many: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of files in the form before torch 1.6."""
    magic, version = pickle.dumps(LEGACY_MAGIC, protocol=2), pickle.dumps(1001, protocol=2)
    machine = pickle.dumps({"little_endian": True}, protocol=2)
    start = magic + version + machine
    content = program(b"}", text("a"), tensor(), b"s")
    yield "legacy shared tuples as magic", program(shared_tuples())
    yield "legacy shared tuples as machine", magic + version + program(shared_tuples())
    yield "legacy shared tuples as keys", start + content + program(b"]", shared_tuples(), b"a") + bytes(12)
    for keys in (b"K\x03", b"N", b"}", text("0"), b"]]a", b"](K\x01K\x02e", b"](" + text("0") * 2 + b"e"):
        yield f"legacy keys {keys!r}", start + content + program(keys) + bytes(12)
    yield "legacy unknown storage", start + content + program(b"]", text("1"), b"a") + bytes(12)
    yield "legacy wrong size", start + content + program(b"]", text("0"), b"a") + struct.pack("<q", 2**60) + bytes(4)
    yield "legacy huge size", start + program(storage(size=number(2**48))) + program(b"]", text("0"), b"a") + bytes(12)
    yield "legacy many keys", start + content + program(b"](", text("0") * min(many, 100_000), b"e")
    for end in range(1, 5):
        yield f"legacy {end} pickles", b"".join((magic, version, machine, content)[:end])


def write_all(folder: Path, *, many: int) -> list[Path]:
    paths = []
    for i, (name, content) in enumerate(in_zip(many)):
        paths.append(write_zip(folder / f"{i} {name}"[:100].replace("/", "_"), content, _0=bytes(4)))
    for i, (name, content) in enumerate(legacy(many)):
        paths.append(folder / f"l{i} {name}"[:100].replace("/", "_"))
        paths[-1].write_bytes(content)
    return paths


@pytest.fixture
def limited() -> Iterator[None]:
    """End a test that does not come to an end by itself."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"reading took more than {SECONDS} s")

    before: Callable[..., object] | int | None = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_small_hostile_pickles_are_refused(tmp_path: Path, limited: None) -> None:
    spec = load_spec("nano")
    paths = write_all(tmp_path, many=FEW)
    assert len(paths) > 300
    for path in paths:
        with pytest.raises(ArtifactError) as caught:
            import_checkpoint(path, spec=spec)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


READER = """
import resource, signal, sys
from pathlib import Path
from yolov7.errors import ArtifactError
from yolov7.spec.spec_files import load_spec
from yolov7.weights.foreign.reference import import_checkpoint
spec = load_spec("nano")
for path in sys.stdin.read().splitlines():
    signal.alarm(20)  # ends the process
    try:
        import_checkpoint(path, spec=spec)
    except ArtifactError as error:
        assert str(error).startswith(path + ": "), error
    else:
        raise SystemExit(f"{path} was read")
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
def test_large_hostile_pickles_take_little_time_and_memory(tmp_path: Path) -> None:
    paths = write_all(tmp_path, many=MANY)
    done = subprocess.run(
        [sys.executable, "-c", READER], input="\n".join(map(str, paths)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2048
