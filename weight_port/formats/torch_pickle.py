"""A pickle of PyTorch's as plain values: read, never run.

An interpreter of pickle's instructions that can make nothing but Python's plain values and
descriptions of tensors. A name in the file (a class, a function) is compared with a closed list; it
is never imported, looked up or called.
"""

import math
import pickletools
import re
from collections.abc import Callable, Mapping, Sized
from typing import Any, BinaryIO, NamedTuple


class Refused(Exception):
    """Something in a pickle that is neither a tensor nor a plain value; its text says what."""


class Global(NamedTuple):
    """A name in a pickle, as "module.name"; stands for itself."""

    name: str


class Storage(NamedTuple):
    """Numbers that tensors are made of.

    Attributes:
      kind: PyTorch's name of its class, such as "FloatStorage".
      key: under which the file has them.
      count: how many the pickle says there are.
    """

    kind: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A tensor as its file describes it; offset and strides in numbers of the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class NoTensor(NamedTuple):
    """A tensor that is not made of plain numbers, and why, in words."""

    problem: str


def _tensor(storage, offset, shape, strides, *_: Any) -> Tensor:
    lengths = (*shape, *strides, offset)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in lengths)
    if not isinstance(storage, Storage) or not whole or len(shape) != len(strides):
        raise ValueError("a tensor without storage, shape or strides")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _of_another_type(storage, offset, shape, strides, grad, hooks, dtype, *_: Any) -> NoTensor:
    return NoTensor(f"is of type {dtype.name}")


def _quantised(storage: Storage, *_: Any) -> NoTensor:
    return NoTensor(f"is of type torch.{storage.kind.removesuffix('Storage').lower()}")


def _subclass(make: Global, kind: Global, arguments: tuple, *_: Any) -> Any:
    if kind.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise Refused(kind.name)
    return _call(make, arguments)


# What may be called in a file -> what is made of it.
CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_tensor_v3": _of_another_type,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_sparse_tensor": lambda *_: NoTensor("is not dense (sparse)"),
    "torch._utils._rebuild_sparse_csr_tensor": lambda *_: NoTensor("is not dense (sparse)"),
    "torch._utils._rebuild_nested_tensor": lambda *_: NoTensor("is not dense (nested)"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: NoTensor(
        "has a shape and no numbers (a meta tensor)"
    ),
    "torch.serialization._get_layout": lambda name: name,
    "torch.device": lambda *_: "device",
    "torch.Size": tuple,
    "collections.OrderedDict": lambda *pairs: dict(*pairs),
    "__builtin__.set": set,
    "builtins.set": set,
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes, in pickles of old protocols
}
# Names that stand for themselves: types of numbers and classes that are only named.
NAMES = re.compile(
    r"torch\.(\w+Storage|[bq]?u?(float|int|complex|bool|bits)\w*|double|half|long|short|per_\w+)"
    r"|torch\.storage\.(Untyped|Typed)Storage|torch\.Tensor|torch\.nn\.parameter\.Parameter"
)


MOST_MADE = 10_000_000  # entries of all that calls in a file make, tensors apart


def read(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """The next pickle of a stream, as plain values, `Tensor`s and `NoTensor`s.

    Args:
      file: whose position is behind the pickle afterwards.
      storages: gets every storage that the pickle speaks of, by key.

    Raises:
      Refused: it holds anything else, which is named.
      Exception: of nearly any kind, if it is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    marks: list[int] = []
    left = MOST_MADE
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if isinstance(argument, int) and argument.bit_length() > 128:
            raise Refused("a whole number of more than 128 bits")
        if name == "STOP":
            return stack.pop()
        if name == "BINPERSID":
            stack.append(_storage(stack.pop()))
            if storages is not None:
                storages[stack[-1].key] = stack[-1]
        elif name in _STEPS:
            _STEPS[name](stack, memo, marks, argument)
            if name == "REDUCE" and isinstance(stack[-1], Sized):  # copies of what is in the memo
                left -= len(stack[-1])
                if left < 0:
                    raise Refused("more entries made by calls than any checkpoint has")
        elif name in _PUSHED:
            stack.append(argument)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"pickle's instruction {name}")
    raise ValueError("the pickle has no end")


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


def _global(name: str) -> Global:
    """A name of the closed list. Raises Refused for any other."""
    if name in CALLS or NAMES.fullmatch(name):
        return Global(name)
    raise Refused(name)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise Refused("a call of what has no name")
    if function.name not in CALLS:
        raise Refused(f"a call of {function.name}")
    return CALLS[function.name](*arguments)


def _storage(content: Any) -> Storage:
    """The storage that an identifier in a pickle speaks of.

    Its parts: "storage", class, key, device, count, and in old files the view, which is None.
    """
    what, kind, key, _, count, *view = content
    if what != "storage":
        raise Refused(f"a saved {what[:40] if isinstance(what, str) else type(what).__name__}")
    if any(view) or not isinstance(key, str) or not isinstance(count, int):
        raise Refused("a view of a storage")
    return Storage(kind.name.rpartition(".")[2], key, count)


def _since_mark(stack: list[Any], marks: list[int]) -> list[Any]:
    place = marks.pop()
    found = stack[place:]
    del stack[place:]
    return found


def _to_dict(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _appended(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise Refused(f"additions to a {type(stack[-1]).__name__}")
    stack[-1].extend(items)


def _set(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], dict):
        raise Refused(f"entries of a {type(stack[-1]).__name__}")
    stack[-1].update(_to_dict(items))


def _build(stack: list[Any]) -> None:
    """Attributes of an object: those of a state dict, its modules' versions, are left out."""
    stack.pop()
    if not isinstance(stack[-1], dict):
        raise Refused(f"attributes of a {type(stack[-1]).__name__}")


def _last(stack: list[Any], count: int) -> list[Any]:
    if count > len(stack):
        raise ValueError("the pickle takes more than it made")
    found = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return found


# Instruction -> its step on (stack, memo, marks, argument).
_STEPS: Mapping[str, Callable[[list[Any], dict[int, Any], list[int], Any], Any]] = {
    "MARK": lambda s, m, k, a: k.append(len(s)),
    "POP": lambda s, m, k, a: s.pop(),
    "POP_MARK": lambda s, m, k, a: _since_mark(s, k),
    "DUP": lambda s, m, k, a: s.append(s[-1]),
    "NONE": lambda s, m, k, a: s.append(None),
    "NEWTRUE": lambda s, m, k, a: s.append(True),
    "NEWFALSE": lambda s, m, k, a: s.append(False),
    "EMPTY_LIST": lambda s, m, k, a: s.append([]),
    "EMPTY_DICT": lambda s, m, k, a: s.append({}),
    "EMPTY_TUPLE": lambda s, m, k, a: s.append(()),
    "EMPTY_SET": lambda s, m, k, a: s.append(set()),
    "LIST": lambda s, m, k, a: s.append(_since_mark(s, k)),
    "DICT": lambda s, m, k, a: s.append(_to_dict(_since_mark(s, k))),
    "TUPLE": lambda s, m, k, a: s.append(tuple(_since_mark(s, k))),
    "TUPLE1": lambda s, m, k, a: s.append(tuple(_last(s, 1))),
    "TUPLE2": lambda s, m, k, a: s.append(tuple(_last(s, 2))),
    "TUPLE3": lambda s, m, k, a: s.append(tuple(_last(s, 3))),
    "APPEND": lambda s, m, k, a: _appended(s, _last(s, 1)),
    "APPENDS": lambda s, m, k, a: _appended(s, _since_mark(s, k)),
    "SETITEM": lambda s, m, k, a: _set(s, _last(s, 2)),
    "SETITEMS": lambda s, m, k, a: _set(s, _since_mark(s, k)),
    "GET": lambda s, m, k, a: s.append(m[a]),
    "BINGET": lambda s, m, k, a: s.append(m[a]),
    "LONG_BINGET": lambda s, m, k, a: s.append(m[a]),
    "PUT": lambda s, m, k, a: m.__setitem__(a, s[-1]),
    "BINPUT": lambda s, m, k, a: m.__setitem__(a, s[-1]),
    "LONG_BINPUT": lambda s, m, k, a: m.__setitem__(a, s[-1]),
    "MEMOIZE": lambda s, m, k, a: m.__setitem__(len(m), s[-1]),
    "GLOBAL": lambda s, m, k, a: s.append(_global(a.replace(" ", ".", 1))),
    "STACK_GLOBAL": lambda s, m, k, a: s.append(_global(".".join(_last(s, 2)))),
    "REDUCE": lambda s, m, k, a: s.append(_call(*_last(s, 2))),
    "NEWOBJ": lambda s, m, k, a: s.append(_call(*_last(s, 2))),
    "BUILD": lambda s, m, k, a: _build(s),
}


def taken(tensor: Tensor) -> int:
    """Number of a tensor's entries."""
    return math.prod(tensor.shape)


def reach(tensor: Tensor) -> int:
    """Number of its storage's entries up to a tensor's last one."""
    if not taken(tensor):
        return 0
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return tensor.offset + sum((n - 1) * step for n, step in steps) + 1
