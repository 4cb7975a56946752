"""Read pickles of plain values and arrays without running anything that they name.

A pickle is a program for a stack machine, and some of its instructions call whatever function it names. Here the
instructions are carried out by a machine of our own, which has those for plain values alone; of the functions it knows
by name what numpy's arrays and byte buffers write, and puts the value that they would make in their place.
"""

import math
import pickletools
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

_CODES = ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")


class UnsafePickle(ValueError):
    """A pickle that is damaged, or holds more than plain values, arrays and byte buffers."""


class _Made:
    """What a function or class would have made; its state may come later, and references to it are there before."""

    def __init__(self, kind: str, value: Any = None):
        self.kind, self.value = kind, value

    def set_state(self, state: Any) -> None:
        if self.kind == "dtype":
            self.value = {"<": "<", ">": ">", "|": "|"}[state[1]] + self.value[-2:]
        elif self.kind == "array":
            _, shape, dtype, columns_first, content = state
            self.value = _array(content, dtype, shape, "F" if columns_first else "C")
        else:
            self.value = bytes(state[0])


def _array(content: bytes, dtype: _Made, shape: Sequence[int], order: str = "C") -> np.ndarray:
    if isinstance(content, _Made) or not isinstance(content, (bytes, bytearray)):
        raise UnsafePickle("an array of something else than numbers")
    values = np.frombuffer(content, np.dtype(dtype.value))
    if any(side < 0 for side in shape) or math.prod(shape) != values.size:
        raise UnsafePickle(f"an array of shape {tuple(shape)} with {values.size} numbers")
    return values.reshape(tuple(shape), order={"C": "C", "F": "F"}[order])  # type: ignore[call-overload, no-any-return]


def _dtype(code: str, *_: bool) -> _Made:
    if code not in _CODES:
        raise UnsafePickle(f"numbers of type {code!r:.20}")
    return _Made("dtype", f"<{code}")


def _scalar(dtype: _Made, content: bytes) -> _Made:
    return _Made("scalar", _array(content, dtype, ())[()])


def _buffer(content: bytes, dtype: _Made, shape: Sequence[int], order: str) -> _Made:
    return _Made("array", _array(content, dtype, shape, order))


def _known() -> Dict[Tuple[str, str], Callable[..., _Made]]:
    known: Dict[Tuple[str, str], Callable[..., _Made]] = {
        ("numpy", "dtype"): _dtype,
        ("numpy", "ndarray"): lambda: _Made("class"),
        ("_io", "BytesIO"): lambda: _Made("buffer"),
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Made("array")
        known[f"{core}.multiarray", "scalar"] = _scalar
        known[f"{core}.numeric", "_frombuffer"] = _buffer
    return known


_KNOWN = _known()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = (
    "BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 "
    "BYTEARRAY8"
).split()
_MARK = object()


def loads(content: bytes) -> Any:
    """The value of a pickle: None, booleans, numbers, text, bytes, arrays, and tuples, lists and dicts of these.

    A byte buffer (`io.BytesIO`) comes as its bytes.

    Raises:
        UnsafePickle: it is damaged, or names anything else.
    """
    try:
        return _resolve(_run(content))
    except UnsafePickle:
        raise
    except Exception as error:  # whatever damage makes instructions meet
        raise UnsafePickle(f"a damaged pickle ({type(error).__name__}: {error})") from error


def _run(content: bytes) -> Any:
    stack: List[Any] = []
    memo: Dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name == "STOP":
            (value,) = stack
            return value
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](stack)
        elif name == "GLOBAL":
            stack.append(_look_up(*argument.split(" ", 1)))
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name not in ("PROTO", "FRAME"):
            raise UnsafePickle(f"the instruction {name}")
    raise UnsafePickle("a pickle without an end")


def _look_up(module: str, name: str) -> Callable[..., _Made]:
    if (module, name) not in _KNOWN:
        raise UnsafePickle(f"{module}.{name}")
    return _KNOWN[module, name]


def _since_mark(stack: List[Any]) -> List[Any]:
    position = max(i for i, value in enumerate(stack) if value is _MARK)
    values = stack[position + 1 :]
    del stack[position:]
    return values


def _call(stack: List[Any]) -> None:
    function, arguments = _last(stack, 2)
    if function not in _KNOWN.values():
        raise UnsafePickle("a call of what is no function")
    stack.append(function(*arguments))


def _build(stack: List[Any]) -> None:
    made, state = _last(stack, 2)
    made.set_state(state)
    stack.append(made)


def _add(stack: List[Any], items: List[Any]) -> None:
    """Add items to the list, or keys and values to the dict, on top of the stack."""
    if isinstance(stack[-1], dict):
        stack[-1].update(zip(items[::2], items[1::2]))
    else:
        stack[-1].extend(items)


def _last(stack: List[Any], count: int) -> List[Any]:
    values = stack[-count:]
    del stack[-count:]
    return values


_STEPS: Dict[str, Callable[[List[Any]], Any]] = {
    "MARK": lambda stack: stack.append(_MARK),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": lambda stack: stack.append(tuple(_last(stack, 1))),
    "TUPLE2": lambda stack: stack.append(tuple(_last(stack, 2))),
    "TUPLE3": lambda stack: stack.append(tuple(_last(stack, 3))),
    "APPEND": lambda stack: stack[-2].append(stack.pop()),
    "APPENDS": lambda stack: _add(stack, _since_mark(stack)),
    "SETITEM": lambda stack: _add(stack, _last(stack, 2)),
    "SETITEMS": lambda stack: _add(stack, _since_mark(stack)),
    "STACK_GLOBAL": lambda stack: stack.append(_look_up(*_last(stack, 2))),
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
}


def _resolve(value: Any) -> Any:
    if isinstance(value, _Made):
        if value.kind not in ("array", "scalar", "buffer") or value.value is None:
            raise UnsafePickle("a value that is not complete")
        return value.value
    if isinstance(value, dict):
        return {_resolve(key): _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item) for item in value)
    if callable(value) or value is _MARK:
        raise UnsafePickle("a function")
    return value
