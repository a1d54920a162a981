"""A pickle reader for checkpoints that executes nothing: it turns opcodes into plain containers and inert stand-ins.

Python's own unpickler imports and calls what a pickle names. This reader can neither import nor call: a global is text,
an instance is a stand-in that keeps its attributes, and a tensor is a note of where its values are in the file. The few
functions that checkpoints need are recognised by name. A pickle that calls any other function is refused.

Every opcode that creates or copies something is counted, and copies count as many steps as they have items, so that
neither the time nor the memory of reading can grow beyond a fixed limit. Nothing that the pickle nests is ever hashed,
compared or printed: sub-tuples that are shared can stand for more values than any computer can visit.
"""

from __future__ import annotations

import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING as PYTHON_2_MODULES
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, final

from yolov7.errors import ArtifactError, one_line

_MAX_STEPS = 2**20  # the checkpoints of the largest models take a quarter of it
_MAX_NAME = 500  # characters of a global
_MAX_DIMENSIONS = 8
_MAX_SIZE = 2**48  # of a storage, and of a tensor's offset, sides and strides, in elements

_MAPPINGS = frozenset({"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"})
_SEQUENCES = frozenset({"collections.deque", "builtins.set", "builtins.frozenset", "builtins.list"})
_REBUILD_TENSOR = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
_REBUILD_PARAMETER = frozenset({"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})
_PATHS = frozenset(
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")  # Python 3.13 writes the second
    for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
)
# calls whose results are not used: training statistics as numpy scalars, bytes, paths, dates, devices
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
    """A class or function that the pickle names. It is never imported.

    Attributes:
        name: The name with its module, such as `torch.FloatStorage`.
    """

    name: str


@final
@dataclass(frozen=True, slots=True, eq=False)
class StandIn:
    """A replacement for an instance of any class.

    Attributes:
        of: The name of the class, with its module.
        attributes: The attributes that the pickle gives the instance.
    """

    of: str
    attributes: dict[str, Any] = field(default_factory=dict)


class StorageNote(NamedTuple):
    """A storage: the block of values that one or several tensors are views of.

    Attributes:
        key: The name of the storage in the file.
        kind: The name of its class, such as `FloatStorage`.
        num_elements: How many values it has.
    """

    key: str
    kind: str
    num_elements: int


@final
@dataclass(frozen=True, slots=True, eq=False)
class TensorNote:
    """A tensor of the pickle, which is a view of a storage.

    Attributes:
        storage: The storage with the values.
        offset: The place of the first value in the storage, in elements.
        shape: The sides of the tensor.
        strides: The steps between neighbours along each side, in elements.
    """

    storage: StorageNote
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Pickle(NamedTuple):
    """The content of a pickle.

    Attributes:
        value: The pickled value, with stand-ins and notes in place of instances and tensors.
        storages: All storages that the pickle mentions.
    """

    value: Any
    storages: tuple[StorageNote, ...]


def unpickle(stream: BinaryIO) -> Pickle:
    """Read the next pickle of a stream.

    Args:
        stream: A stream that is positioned at the start of a pickle; afterwards it is positioned behind it.

    Returns:
        The content of the pickle.

    Raises:
        ArtifactError: The pickle is damaged, too large, or requires code to be executed.
    """
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
        self._num_steps = 0
        self.storages: dict[StorageNote, None] = {}  # a set that keeps its order

    def step(self, opcode: str, argument: Any) -> None:
        """Execute one opcode, whose argument is decoded already."""
        if opcode in _VALUES:
            self._stack.append(argument)
        elif opcode in _MAKERS:
            self._count(1)
            self._stack.append(_MAKERS[opcode]())
        elif opcode in _ACTIONS:
            self._count(1)
            _ACTIONS[opcode](self, argument)
        elif opcode not in _IGNORED:
            raise ArtifactError(f"its pickle uses the opcode {opcode}, which checkpoints do not need")

    def pop(self, *_: Any) -> Any:
        """Remove and return the topmost value."""
        return self._stack.pop()

    def _count(self, steps: int) -> None:
        self._num_steps += steps
        if self._num_steps > _MAX_STEPS:
            raise ArtifactError(f"its pickle takes more than {_MAX_STEPS} steps, far more than a checkpoint needs")

    def mark(self, _: Any) -> None:
        """Begin a new stack above the current one."""
        self._marked.append(self._stack)
        self._stack = []

    def pop_to_mark(self, *_: Any) -> list[Any]:
        """Return to the stack below the last mark, and return the values above it."""
        items, self._stack = self._stack, self._marked.pop()
        return items

    def make_tuple(self, _: Any) -> None:
        """Replace the values above the last mark by a tuple of them."""
        items = self.pop_to_mark()
        self._stack.append(tuple(items))

    def make_short_tuple(self, size: int) -> None:
        """Replace the topmost values by a tuple of them."""
        if len(self._stack) < size:
            raise IndexError("its stack is empty")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def put(self, index: int | None) -> None:
        """Remember the topmost value under a number."""
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def get(self, index: int) -> None:
        """Push the value that was remembered under a number."""
        self._stack.append(self._memo[index])

    def append(self, _: Any) -> None:
        """Append the topmost value to the list below it."""
        self._extend([self.pop()])

    def append_all(self, _: Any) -> None:
        """Append the values above the last mark to the list below it."""
        self._extend(self.pop_to_mark())

    def set_item(self, _: Any) -> None:
        """Add the topmost key and value to the mapping below them."""
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        """Add the keys and values above the last mark to the mapping below it."""
        self._update(self.pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, StandIn):
            raise ValueError(f"appends to {type(target).__name__}")

    def _update(self, items: list[Any]) -> None:
        target, keys, values = self._stack[-1], items[::2], items[1::2]
        if not all(_is_safe_key(key) for key in keys):
            raise ValueError("a key of a mapping is neither text nor an ordinary number")
        if isinstance(target, dict):
            target.update(zip(keys, values, strict=True))
        elif not isinstance(target, StandIn):
            raise ValueError(f"sets items of {type(target).__name__}")

    def find(self, argument: str) -> None:
        """Push the global that the opcode names."""
        module, _, name = argument.partition(" ")
        self._push_global(module, name)

    def find_from_stack(self, _: Any) -> None:
        """Push the global that the two topmost values name."""
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the name of a global is not text")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        if len(module) + len(name) > _MAX_NAME:  # a long text could be joined again and again
            raise ValueError("the name of a global is too long")
        full = f"{PYTHON_2_MODULES.get(module, module)}.{name}"  # protocol 2 writes the names of Python 2
        if full.partition(".")[0] in sys.stdlib_module_names and full not in _STANDARD:
            raise ArtifactError(f"its pickle names {full}, which no checkpoint needs: it may be malicious")
        self._stack.append(Global(full))

    def call(self, _: Any) -> None:
        """Push the result of a call, if it is one of the calls that checkpoints need."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError(f"calls {type(function).__name__}")
        self._stack.append(self._result_of(function.name, arguments))

    def _result_of(self, function: str, arguments: tuple[Any, ...]) -> Any:
        if function in _REBUILD_TENSOR:
            return _rebuild_tensor(*arguments[:4])
        if function in _REBUILD_PARAMETER:
            return arguments[0]
        if function in _MAPPINGS:
            return {}
        if function in _SEQUENCES:
            items = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else []
            self._count(len(items))
            return list(items)
        if function in _INERT_CALLS:
            return StandIn(function)
        raise ArtifactError(f"its pickle calls {function}, which reading weights does not need: it may be malicious")

    def make_instance(self, num_arguments: int) -> None:
        """Replace a class and the arguments of its `__new__` by a stand-in."""
        for _ in range(num_arguments):
            self.pop()
        of = self.pop()
        if not isinstance(of, Global):
            raise ValueError(f"makes an instance of {type(of).__name__}")
        self._stack.append(StandIn(of.name))

    def build(self, _: Any) -> None:
        """Give the topmost attributes to the stand-in below them."""
        state = self.pop()
        if isinstance(state, tuple) and state:  # (attributes, slots)
            state = state[0]
        if isinstance(self._stack[-1], StandIn) and isinstance(state, dict):
            self._count(len(state))
            self._stack[-1].attributes.update(state)

    def resolve_persistent(self, _: Any) -> None:
        """Push the storage that a persistent id names.

        In files from before torch 1.6 an id can also be a module's class with its source, which is not used.
        """
        match self.pop():
            case ("storage", Global(name=kind), str(key), str(), int(size), *view) if 0 <= size <= _MAX_SIZE and (
                not view or (len(view) == 1 and view[0] is None)
            ):
                storage = StorageNote(key, kind.removeprefix("torch."), size)
                self.storages[storage] = None
                self._stack.append(storage)
            case ("module", Global() as of, *_):
                self._stack.append(of)
            case _:
                raise ValueError("a persistent id does not name a storage")


def _is_safe_key(key: Any) -> bool:
    """Return whether hashing a key takes constant time and keys cannot be chosen to have equal hashes."""
    return not isinstance(key, tuple) and (not isinstance(key, int) or key.bit_length() < 60)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorNote:
    if not all(isinstance(sides, (tuple, list)) and len(sides) <= _MAX_DIMENSIONS for sides in (shape, strides)):
        raise ValueError("the shape of a tensor is not a short tuple")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, StorageNote) or any(type(n) is not int or not 0 <= n <= _MAX_SIZE for n in numbers):
        raise ValueError("a tensor is not made of a storage and numbers")
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
    "EMPTY_SET": list,  # whose items are not hashed
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
