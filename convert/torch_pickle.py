"""PyTorch's pickles without PyTorch, and without running anything in them.

A pickle may name any function of Python and call it. The unpickler here knows the dozen names that describe tensors;
every other name becomes a Foreign object, which takes what the pickle does with it and does nothing. So a training
checkpoint's optimizer and arguments are never rebuilt. Tensors come out as descriptions, their bytes lie elsewhere.
"""

import io
import math
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from gla_jax.support.errors import ConversionError

STORAGE_DTYPES: Mapping[str, np.dtype] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

MAX_STEPS = 400_000  # reads of a pickle; that of the largest CLIP with its optimizer takes 190,000
MAX_KEY = 50  # parts of a tuple that is a key; hashing one of 100,000 levels ends the process
MAX_AXES = 32  # of a tensor
MAX_NAMES = 10_000  # of objects that are not rebuilt
MAX_PARTS = 100_000  # of a container that is searched for foreign objects


class Storage(NamedTuple):
    """A run of numbers in the archive."""

    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    """A strided view of a storage; offset, shape and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class ScriptModule:
    """An object of a TorchScript archive: its attributes, whatever its class was."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module without attributes")
        self.attributes = state


class Foreign:
    """An object that is not rebuilt; origin names what the pickle wanted, such as "argparse.Namespace"."""

    origin = ""

    def __init__(self, *arguments: Any, **_: Any):
        inner = [argument.origin for argument in arguments if is_foreign(argument)]
        # As torch._utils._rebuild_tensor_v3 of torch.float8_e4m3fn; cut, for a pickle can nest them without end.
        self.origin = " of ".join(filter(None, [self.origin, *inner[-1:]]))[:200]

    def __call__(self, *_: Any, **__: Any) -> "Foreign":
        return self

    def ignore(self, *_: Any) -> None:
        """Take whatever a pickle puts into an object."""

    __setstate__ = __setitem__ = append = extend = add = update = ignore


def is_foreign(value: Any) -> bool:
    """True for a Foreign object and for its class."""
    return isinstance(value, Foreign) or (isinstance(value, type) and issubclass(value, Foreign))


def foreign_origin(value: Any) -> str | None:
    """The origin of the first Foreign object or class in a value, inside containers too; None without one."""
    waiting = [value]
    for part in waiting:
        if is_foreign(part):
            return part.origin
        inside = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple | set) else ()
        waiting.extend(islice(inside, max(MAX_PARTS - len(waiting), 0)))  # containers may hold themselves
    return None


class _OrderedDict(dict):
    def __setstate__(self, state: Any) -> None:
        """State dicts carry version numbers here."""


class _Sealed:
    """A function a pickle may call and nothing else; bare, its attributes could be written to."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a function has no state")


def _rebuild_tensor(storage: Any, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Tensor | Foreign:
    """Arguments as torch._utils._rebuild_tensor_v2 has them; rest: requires_grad, hooks, flags."""
    if isinstance(storage, Foreign):  # quantised or complex, as something beside the weights may be
        return storage
    numbers = (offset, *shape, *strides)
    if (
        not isinstance(storage, Storage)
        or not len(shape) == len(strides) <= MAX_AXES
        or not all(type(n) is int for n in numbers)
    ):
        raise pickle.UnpicklingError("a malformed tensor")
    if any(rest[2:]):
        raise pickle.UnpicklingError("a conjugated or negated tensor")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    inside = max(1, *shape, math.prod(shape)) <= max(1, storage.count) and (0 in shape or last < storage.count)
    if min(numbers) < 0 or not inside:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    # How TorchScript writes lists and typed containers.
    **{("torch.jit._pickle", f"build_{kind}list"): lambda items: items for kind in ("int", "bool", "double", "tensor")},
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
}


class _Steps(io.BytesIO):
    """A pickle that can be read in so many steps; every opcode takes one at least."""

    left = MAX_STEPS

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("more steps than any model's")
        return super().read(size)


class _Tuple(tuple):
    """A tuple that is no key when it is large: hashing one that holds another twice and so on takes for ever."""

    parts = 0

    def __hash__(self) -> int:
        if self.parts > MAX_KEY:
            raise pickle.UnpicklingError("a key without end")
        return super().__hash__()


def _counting_parts(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same opcode, making a tuple that knows how many parts it has."""

    def load_tuple(unpickler: Any) -> None:
        load(unpickler)
        made = unpickler.stack[-1] = _Tuple(unpickler.stack[-1])
        inside = sum(item.parts for item in made if isinstance(item, _Tuple))
        made.parts = min(len(made) + inside, MAX_KEY + 1)

    return load_tuple


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, since the compiled one bounds neither steps nor keys nor the size of its memo."""

    dispatch = pickle._Unpickler.dispatch | {
        opcode[0]: _counting_parts(pickle._Unpickler.dispatch[opcode[0]])
        for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
    }
    del dispatch[pickle.LONG4[0]]  # numbers of millions of digits
    names_left = MAX_NAMES

    def __init__(self, file: _Steps):
        super().__init__(file)
        self.find_class = cache(self.find_class)  # of this file alone

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        if module == "__torch__" or module.startswith("__torch__."):
            return ScriptModule
        if (module, name) in _ALLOWED:
            return _Sealed(_ALLOWED[module, name])
        self.names_left -= 1
        if self.names_left < 0:
            raise pickle.UnpicklingError("more names than any model's")
        return type("Foreign", (Foreign,), {"origin": f"{module}.{name}"[:200]})

    def persistent_load(self, pid: Any) -> Storage | Foreign:
        kind, dtype, key, _, count = pid
        if kind == "storage" and is_foreign(dtype):
            return Foreign(dtype)
        if kind != "storage" or type(dtype) is not str or type(key) is not str or type(count) is not int:
            raise pickle.UnpicklingError("a malformed storage")
        return Storage(key, STORAGE_DTYPES[dtype], count)


def unpickle(data: bytes) -> Any:
    """The object of a PyTorch pickle with every tensor described by a Tensor.

    Raises ConversionError for a damaged pickle.
    """
    try:
        return _Unpickler(_Steps(data)).load()
    except Exception as error:  # damaged opcodes raise almost anything
        reason = error if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise ConversionError(f"its pickle is damaged ({reason}).") from error
