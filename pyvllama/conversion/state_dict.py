"""The pickle inside a PyTorch checkpoint, interpreted without running anything that it names.

A pickle is a program. This interpreter knows the few instructions that a state dict is made of, and of the functions
it may call the few that rebuild a tensor; what they "call" here only notes where the tensor's values lie. Every other
name is refused, by its name, before anything is done with it. Python's own unpickler is not used at all.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NoReturn

from pyvllama.errors import CheckpointError

__all__ = ["Storage", "StoredTensor", "read_state_dict"]


@dataclass(frozen=True)
class Storage:
    """A run of numbers that tensors are views of."""

    key: str
    """Name of the archive's member `data/<key>`."""
    dtype: str
    """'F32', 'F16', 'BF16', or PyTorch's name of a type that cannot be converted."""
    n_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_STORAGES = {
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "FloatStorage": "F32",
    **{
        f"{kind}Storage": kind.lower()
        for kind in ("Double", "Long", "Int", "Short", "Char", "Byte", "Bool", "ComplexFloat", "ComplexDouble")
    },
}


class _Callable:
    """What stands for a permitted function on the interpreter's stack."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


@dataclass(frozen=True)
class _StorageType:
    dtype: str


def _rebuild_tensor(*args: Any) -> StoredTensor:
    storage, offset, shape, strides = args[:4]
    numbers = (offset, *shape, *strides)
    if (
        not isinstance(storage, Storage)
        or len(shape) != len(strides)
        or not all(type(x) is int and x >= 0 for x in numbers)
    ):
        raise TypeError("a tensor's storage, offset, shape and strides")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(*args: Any) -> StoredTensor:
    if not isinstance(args[0], StoredTensor):
        raise TypeError("a parameter's tensor")
    return args[0]


def _ordered_dict(*args: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for pairs in args:
        for key, value in pairs:
            result[_text(key)] = value
    return result


_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": _Callable(_ordered_dict),
    "torch._utils._rebuild_tensor_v2": _Callable(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Callable(_rebuild_parameter),
    **{f"torch.{name}": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.storage.{name}": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    "torch.bfloat16": _StorageType("BF16"),
    "torch.float16": _StorageType("F16"),
    "torch.float32": _StorageType("F32"),
}
"""Everything that a checkpoint may name, and what stands for it here."""

_MARK = object()
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_state_dict(data: bytes, where: str) -> dict[str, Any]:
    """Interpret a state dict's pickle.

    Args:
        data: the whole pickle.
        where: for messages.

    Returns:
        name -> StoredTensor, or whatever plain value (None, number, text, list, dict) the pickle holds there.

    Raises:
        CheckpointError: it names a function or class that a state dict does not need, it is damaged, or it holds
            something else than a dict. Nothing of it has been executed.
    """
    machine = _Machine(where)
    try:
        result = machine.run((op.name, arg) for op, arg, _ in pickletools.genops(BytesIO(data)))
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, MemoryError, RecursionError) as e:
        raise CheckpointError(f"{where} is no valid pickle of a state dict: {e}") from e
    if not isinstance(result, dict):
        raise CheckpointError(f"{where} holds {type(result).__name__}, but a state dict is a dict of tensors")
    return result


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{type(value).__name__} where a text must be")
    return value


class _Machine:
    """Pickle's stack machine, for a harmless part of its instructions."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: Iterator[tuple[str, Any]]) -> Any:
        for op, arg in program:
            if op == "STOP":
                return self.stack.pop()
            self._step(op, arg)
        raise ValueError("it ends too early")

    def _step(self, op: str, arg: Any) -> None:
        stack = self.stack
        if op in _LITERALS:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op]())
        elif op in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[op])))
        elif op == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif op in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif op == "GLOBAL":
            stack.append(self._global(*arg.split(" ", 1)))
        elif op == "STACK_GLOBAL":
            stack.append(self._global(*self._pop(2)))
        elif op == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif op not in ("PROTO", "FRAME"):
            self._build(op)

    def _build(self, op: str) -> None:
        """The instructions that change what lies below them on the stack."""
        stack = self.stack
        if op == "REDUCE":
            function, args = self._pop(2)
            if not isinstance(function, _Callable) or type(args) is not tuple:
                self._refuse(f"calls an object of type {type(function).__name__}")
            stack.append(function.call(*args))
        elif op in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if op == "SETITEM" else self._pop_mark()
            for key, value in zip(items[::2], items[1::2], strict=True):
                self._top(dict)[_text(key)] = value
        elif op in ("APPEND", "APPENDS"):
            items = self._pop(1) if op == "APPEND" else self._pop_mark()
            self._top(list).extend(items)
        elif op == "BUILD":  # attributes of an OrderedDict: the versions of PyTorch's modules
            stack.pop()
            self._top(dict)
        else:
            self._refuse(f"uses the instruction {op}")

    def _global(self, module: Any, name: Any) -> Any:
        full = f"{_text(module)}.{_text(name)}"
        if full not in _GLOBALS:
            self._refuse(f"names {full!r:.120}")
        return _GLOBALS[full]

    def _storage(self, identity: Any) -> Storage:
        kind, dtype, key, _location, n_elements = identity
        if kind != "storage" or not isinstance(dtype, _StorageType) or type(n_elements) is not int or n_elements < 0:
            raise TypeError("a storage's identity")
        return Storage(_text(key), dtype.dtype, n_elements)

    def _pop(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise IndexError("its stack is empty")
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def _pop_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise IndexError("a mark is missing")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"no {kind.__name__} where one must be")
        return self.stack[-1]

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"{self.where} {what}, which a state dict of tensors does not need and a malicious file could: "
            "it is not read, and nothing of it has been executed"
        )
