"""A pickle reader for checkpoints that executes nothing: opcodes in, plain containers and inert stand-ins out.

Python's own unpickler imports and calls what a pickle names. This one knows no import and no call: a global is a
pair of strings, an instance a stand-in that keeps its attributes, a tensor a note where its numbers lie. The few
functions that checkpoints need are understood by name; a pickle that calls any other is refused.
"""

from __future__ import annotations

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING as PYTHON_2_MODULES
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, final

from yolov7.errors import ArtifactError, one_line

_MAX_ACTIONS = 2**20  # steps that may take memory; the checkpoints of the largest models have a quarter of it

_MAPPINGS = frozenset({"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"})
_SEQUENCES = frozenset({"collections.deque", "builtins.set", "builtins.frozenset", "builtins.list"})
_REBUILD_TENSOR = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
_REBUILD_PARAMETER = frozenset({"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})
_PATHS = frozenset({"pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath"})
# calls whose results matter to nobody here: figures of the training as numpy scalars, bytes, paths, dates, devices
_INERT_CALLS = _PATHS | {
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "_codecs.encode",
    "builtins.bytes",
    "datetime.datetime",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
}
_TYPES = frozenset(f"builtins.{kind}" for kind in ("bool", "bytes", "float", "int", "object", "str", "tuple"))
# what a checkpoint may name of the standard library; of other packages it may name, but not call, everything
_STANDARD = (
    _MAPPINGS
    | _SEQUENCES
    | _PATHS
    | _TYPES
    | {"argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "_codecs.encode"}
)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A class or function that the pickle names; it is never looked up."""

    name: str  # with its module, such as torch.FloatStorage


@final
@dataclass(frozen=True, slots=True, eq=False)
class StandIn:
    """What stands for an instance of any class: the attributes that the pickle gives it."""

    of: str
    attributes: dict[str, Any] = field(default_factory=dict)


class StorageNote(NamedTuple):
    """Where the numbers of tensors lie: the storage's key in the file, its class's name and number of elements."""

    key: str
    kind: str  # such as FloatStorage
    num_elements: int


@final
@dataclass(frozen=True, slots=True, eq=False)
class TensorNote:
    """A tensor of the pickle: a view of a storage, in elements."""

    storage: StorageNote
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Pickle(NamedTuple):
    """What a pickle holds, and all storages that it speaks of."""

    value: Any
    storages: tuple[StorageNote, ...]


def unpickle(stream: BinaryIO) -> Pickle:
    """The next pickle of a stream; ArtifactError where it is damaged, too big or calls for execution."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return Pickle(machine.pop(), tuple(machine.storages))
            machine.step(opcode.name, argument)
    except ArtifactError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise ArtifactError(f"its pickle is damaged ({one_line(error)})") from None
    raise ArtifactError("its pickle has no end")


@final
class _Machine:
    """The stack machine that a pickle is a program for."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._num_actions = 0
        self.storages: dict[StorageNote, None] = {}  # in order

    def step(self, opcode: str, argument: Any) -> None:
        """Takes one opcode, its argument decoded; values of no parts are pushed as they are."""
        if opcode in _VALUES:
            self._stack.append(argument)
        elif opcode in _MAKERS:
            self._count()
            self._stack.append(_MAKERS[opcode]())
        elif opcode in _ACTIONS:
            self._count()
            _ACTIONS[opcode](self, argument)
        elif opcode not in _IGNORED:
            raise ArtifactError(f"its pickle uses {opcode}, which checkpoints do without")

    def pop(self, *_: Any) -> Any:
        """Takes the topmost value."""
        return self._stack.pop()

    def _count(self) -> None:
        self._num_actions += 1
        if self._num_actions > _MAX_ACTIONS:
            raise ArtifactError(f"its pickle takes more than {_MAX_ACTIONS} steps, far more than a checkpoint needs")

    def mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def pop_to_mark(self, *_: Any) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def make_tuple(self, _: Any) -> None:
        items = self.pop_to_mark()
        self._stack.append(tuple(items))

    def make_short_tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError("its stack is empty")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def append(self, _: Any) -> None:
        self._extend([self.pop()])

    def append_all(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        self._update(self.pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, StandIn):
            raise ValueError(f"appends to {type(target).__name__}")

    def _update(self, items: list[Any]) -> None:
        target, keys, values = self._stack[-1], items[::2], items[1::2]
        if any(isinstance(key, tuple) for key in keys):  # to hash a very deep one overruns the C stack
            raise ValueError("a tuple is the key of a mapping")
        if isinstance(target, dict):
            target.update(zip(keys, values, strict=True))
        elif not isinstance(target, StandIn):
            raise ValueError(f"sets items of {type(target).__name__}")

    def find(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_global(module, name)

    def find_from_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the name of a global is no text")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        full = f"{PYTHON_2_MODULES.get(module, module)}.{name}"  # protocol 2 writes the old names
        if full.partition(".")[0] in sys.stdlib_module_names and full not in _STANDARD:
            raise ArtifactError(f"its pickle names {full}, which no checkpoint needs: it may be malicious")
        self._stack.append(Global(full))

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError(f"calls {type(function).__name__}")
        self._stack.append(_result_of(function.name, arguments))

    def make_instance(self, num_arguments: int) -> None:
        for _ in range(num_arguments):
            self.pop()
        of = self.pop()
        if not isinstance(of, Global):
            raise ValueError(f"makes an instance of {type(of).__name__}")
        self._stack.append(StandIn(of.name))

    def build(self, _: Any) -> None:
        state = self.pop()
        if isinstance(state, tuple) and state:  # (attributes, slots)
            state = state[0]
        if isinstance(self._stack[-1], StandIn) and isinstance(state, dict):
            self._stack[-1].attributes.update(state)

    def resolve_persistent(self, _: Any) -> None:
        """A storage; in files from before torch 1.6 also a module's class with its source, which is passed over."""
        match self.pop():
            case ("storage", Global(name=kind), str(key), str(), int(size), *view) if (
                view in ([], [None]) and size >= 0
            ):
                storage = StorageNote(key, kind.removeprefix("torch."), size)
                self.storages[storage] = None
                self._stack.append(storage)
            case ("module", Global() as of, *_):
                self._stack.append(of)
            case _:
                raise ValueError("a persistent id is not that of a storage")


def _result_of(function: str, arguments: tuple[Any, ...]) -> Any:
    """What a call gives that checkpoints need; ArtifactError for any other."""
    if function in _REBUILD_TENSOR:
        return _rebuild_tensor(*arguments[:4])
    if function in _REBUILD_PARAMETER:
        return arguments[0]
    if function in _MAPPINGS:
        return {}
    if function in _SEQUENCES:
        return list(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else []
    if function in _INERT_CALLS:
        return StandIn(function)
    raise ArtifactError(f"its pickle calls {function}, which reading weights does not need: it may be malicious")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorNote:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, StorageNote) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor is made of other things than a storage and numbers")
    return TensorNote(storage, offset, tuple(shape), tuple(strides))


_IGNORED = frozenset({"PROTO", "FRAME"})
_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,  # so that nothing is hashed
    "EMPTY_DICT": dict,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_to_mark,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.make_short_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_short_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_short_tuple(3),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "ADDITEMS": _Machine.append_all,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_from_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": lambda machine, _: machine.make_instance(1),
    "NEWOBJ_EX": lambda machine, _: machine.make_instance(2),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.resolve_persistent,
}
