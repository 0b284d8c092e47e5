"""How tensors were made of those in a checkpoint, so that later starts can make them again without
the code that made them first.

While an `Origins` is active, it looks at the functions of torch that are called. What is computed
of a tensor with a known origin has an origin, too: the function and its arguments. So transformers
may rename, join and turn tensors as it likes. A result of a function that is not in FUNCTIONS has
none, and so has a tensor that is written into.

An origin belongs to memory and to how a tensor looks at it, because a parameter is another object
than the tensor that it was made of. Memory is not kept alive for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

STORED = "stored"
"""The function whose argument is the name of a tensor in a checkpoint."""

_METHODS = (
    *("add", "bfloat16", "chunk", "clone", "contiguous", "detach", "div", "expand", "flatten"),
    *("float", "mul", "neg", "permute", "repeat", "reshape", "squeeze", "sub", "swapaxes"),
    *("to", "transpose", "unbind", "unsqueeze", "view"),
)
_tensor: Any = torch.Tensor  # for its attributes, which look like those of one tensor
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch.Tensor, name) for name in _METHODS},
    "T": _tensor.T.__get__,
    "data": _tensor.data.__get__,
    "getitem": operator.getitem,
    "cat": torch.cat,
    "pad": F.pad,
    "softplus": F.softplus,
    "split": torch.split,
    "stack": torch.stack,
}
"""What is made again, by name."""

_OTHER_NAMES = {
    torch.Tensor.__getitem__: "getitem",
    torch.Tensor.split: "split",
    **{getattr(torch, name): name for name in _METHODS if hasattr(torch, name)},
}
_NAMES = {function: name for name, function in FUNCTIONS.items()} | _OTHER_NAMES


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """A call. Arguments are origins, tensors that no checkpoint decides, numbers, names, and lists
    and tuples of these.
    """

    function: str
    args: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()  # the tensors of a checkpoint that the function itself reads


@dataclass(slots=True)
class _Memory:
    reference: StorageWeakRef  # while it lives no other memory has the same number
    origins: dict[tuple[Any, ...], Origin] = field(default_factory=dict)


_known: dict[int, _Memory] = {}  # by the number of the memory
_forgotten_at = 1024  # entries, of which those without memory are dropped then


def origin_of(tensor: torch.Tensor) -> Origin | None:
    """Where a tensor comes from, if that is known."""
    memory = _known.get(tensor.untyped_storage()._cdata)
    return None if memory is None else memory.origins.get(_view(tensor))


def note(tensor: torch.Tensor, origin: Origin | None) -> None:
    """A tensor comes from there; nothing happens if that is not known, or was noted before."""
    if origin is None:
        return
    if len(_known) >= _forgotten_at:
        _forget()
    storage = tensor.untyped_storage()
    if storage._cdata not in _known:
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        _known[storage._cdata] = _Memory(reference)
    memory = _known[storage._cdata]
    memory.origins.setdefault(_view(tensor), origin)


def note_stored(tensor: torch.Tensor, name: str) -> None:
    """A tensor was read from a checkpoint, where it has this name."""
    note(tensor, Origin(STORED, (name,), reads=(name,)))


class JustRead(torch.Tensor):
    """A tensor that was read, perhaps by a thread on which no `Origins` is active. The origin of
    what is first computed of it is noted all the same, and the result is a plain tensor.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass(), Origins():
            return func(*_plain(args), **_plain(kwargs or {}))


def _plain(value: Any) -> Any:
    if isinstance(value, JustRead):
        return value.as_subclass(torch.Tensor)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(each) for each in value)
    return value


def _view(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _forget() -> None:
    global _forgotten_at
    for number, each in list(_known.items()):
        if each.reference.expired():  # type: ignore[no-untyped-call]
            del _known[number]
    _forgotten_at = max(1024, 2 * len(_known))


class Origins(TorchFunctionMode):
    """Notes the origins of what this thread computes."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        name = getattr(func, "__name__", "")
        if "out" in named or (name.endswith("_") and not name.endswith("__")):
            _written(named.get("out", args[0] if args else None))
        elif name == "__setitem__":
            _written(args[0])
        elif func in _NAMES:
            _note_result(result, _NAMES[func], args, named)
        return result


def _written(tensor: Any) -> None:
    """Forget where what was written into came from."""
    if not isinstance(tensor, torch.Tensor):
        return
    memory = _known.get(tensor.untyped_storage()._cdata)
    if memory is not None and tensor.numel():
        begin, end = _extent(*_view(tensor))
        kept = {
            view: origin for view, origin in memory.origins.items() if _is_apart(view, begin, end)
        }
        memory.origins = kept


def _is_apart(view: tuple[Any, ...], begin: int, end: int) -> bool:
    own_begin, own_end = _extent(*view)
    return own_end <= begin or end <= own_begin


def _extent(
    offset: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
) -> tuple[int, int]:
    """The first byte of a view in its memory, and the one behind its last."""
    steps = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return offset * dtype.itemsize, (offset + steps + 1) * dtype.itemsize


def _note_result(result: Any, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    traced = _traced(args)
    if not any(_origins_in(traced)):
        return
    origin = Origin(name, traced, _traced(named))
    if isinstance(result, torch.Tensor):
        note(result, _simpler(origin))
        return
    of_first = name == "unbind" and (args[1:] in ((), (0,))) and not named
    for index, part in enumerate(result):
        of = traced[0] if of_first else origin
        note(part, _simpler(Origin("getitem", (of, index))))


def _traced(value: Any) -> Any:
    """A value with origins in the place of tensors that have one."""
    if isinstance(value, torch.Tensor):
        return origin_of(value) or value
    if isinstance(value, dict):
        return {name: _traced(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_traced(each) for each in value)
    return value


def _origins_in(value: Any) -> Iterator[Origin]:
    if isinstance(value, Origin):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _origins_in(each)


def _simpler(origin: Origin) -> Origin:
    """The same for one of many experts, without the rest of them: what is taken out of a stack is
    one of its parts, and what is taken out of tensors that lie side by side lies side by side.
    """
    if origin.function != "getitem" or type(origin.args[1]) is not int:
        return origin
    of, index = origin.args
    if not isinstance(of, Origin) or not isinstance(of.args[0], Sequence):
        return _simpler_conversion(origin)
    dim = of.args[1] if len(of.args) > 1 else of.named.get("dim", 0)
    if of.function == "stack" and dim == 0 and isinstance(of.args[0][index], Origin):
        found: Origin = of.args[0][index]
        return found
    if of.function == "cat" and dim >= 1:
        parts = [_simpler(Origin("getitem", (each, index))) for each in of.args[0]]
        return Origin("cat", (parts, dim - 1))
    return origin


def _simpler_conversion(origin: Origin) -> Origin:
    """What is taken out of a converted tensor is converted."""
    of, index = origin.args
    if isinstance(of, Origin) and of.function in ("to", "detach", "float", "bfloat16"):
        inner = _simpler(Origin("getitem", (of.args[0], index)))
        return Origin(of.function, (inner, *of.args[1:]), of.named)
    return origin
