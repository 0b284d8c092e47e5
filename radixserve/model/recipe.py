"""How the weights of a decoder are made of the tensors in a checkpoint: written down when a model
was checked, and followed at later starts.

A recipe is a list of calls, each with a function by name and its arguments, which may be results of
calls before it. The functions are the dataclasses of `model.weights`, those of torch in
`tensors.origins`, and those of the files. So whatever read and rearranged tensors at the first
start, whichever class of models it was, later starts need none of it.

A recipe must not hold what a file could change. Numbers and small tensors that no file decides
stand in it as they are; where a tensor of the files was read and is nowhere in the recipe, there is
none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

from radixserve.checkpoints.weight_files import Part
from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu.activation import Activation
from radixserve.kernels.cpu.experts import Scores
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.grouped import GroupedGemm
from radixserve.kernels.cpu.gemm.stacked import StackedGemm
from radixserve.kernels.cpu.latent import HeadWeights
from radixserve.model import weights as parts
from radixserve.model.fixed_rotary import FixedTable
from radixserve.model.quantise import QUANTISED, packing_of
from radixserve.model.rotary_tables import StoredTable
from radixserve.model.weights import Weights
from radixserve.tensors.origins import FUNCTIONS, STORED, Origin, origin_of

_PARTS: dict[str, Any] = {
    each.__name__: each
    for each in (
        *(parts.Attention, parts.Embedding, parts.Experts, parts.Head, parts.HeadNorm),
        *(parts.Latent, parts.Layer, parts.Mlp, parts.Norm, parts.Rope, parts.Router),
        *(parts.Target, parts.Weights),
        *(Activation, FixedTable, HeadWeights, LayerAttention, Scores, StoredTable),
    )
}
_GEMM, _GROUPED, _STACKED = "Gemm", "GroupedGemm", "StackedGemm"
_MOST_CONSTANT = 16 << 20  # bytes of all tensors that stand in a recipe


class NoRecipe(Exception):
    """Later starts could not make such weights; the sentence says why."""


class Call(msgspec.Struct, array_like=True, frozen=True):
    """One call. An argument is a number, a text, None, or a list whose first item says what it is:
    see `_Writer.argument`.
    """

    function: str
    args: list[Any]
    named: dict[str, Any] = {}


class Tensors(Protocol):
    """The files of a checkpoint: `WeightFiles` or `GgufFile`."""

    def read(self, *parts: Part) -> torch.Tensor:
        """Tensors as one, joined along their first dimension; the next call may overwrite it."""

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """What else is made of them, by name."""


def recipe_of(weights: Weights, read: Collection[str]) -> list[Call]:
    """The recipe of weights for which the tensors `read` of a checkpoint were read.

    Raises:
        NoRecipe: there is none.
    """
    writer = _Writer()
    writer.argument(weights)
    left_out = sorted(set(read) - writer.names)
    if left_out or not read:
        raise NoRecipe(f"what became of {left_out[0] if left_out else 'its tensors'} is not known")
    return writer.calls


class _Writer:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.names: set[str] = set()  # of tensors in the checkpoint
        self._numbers: dict[int, tuple[int, object]] = {}  # of what was written, by identity
        self._constant_bytes = 0

    def argument(self, value: Any) -> Any:
        """A value as an argument of a call."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in (list, tuple, torch.Size):
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, *map(self.argument, value)]
        if type(value) is dict:
            return ["dict", [[name, self.argument(each)] for name, each in value.items()]]
        if isinstance(value, slice):
            return ["slice", value.start, value.stop, value.step]
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if isinstance(value, torch.device):
            return ["device", value.type]
        if value is ...:
            return ["ellipsis"]
        return self._result(value)

    def _result(self, value: Any) -> Any:
        """Something that a call makes; what is the same object is made once."""
        if isinstance(value, torch.Tensor):
            origin = origin_of(value)
            return self._constant(value) if origin is None else self._result(origin)
        if id(value) not in self._numbers:
            self.calls.append(self._call(value))
            self._numbers[id(value)] = len(self.calls) - 1, value
        return ["result", self._numbers[id(value)][0]]

    def _call(self, value: Any) -> Call:
        kind = type(value).__name__
        if isinstance(value, Origin):
            self.names.update(value.reads)
            named = {name: self.argument(each) for name, each in value.named.items()}
            return Call(value.function, [self.argument(each) for each in value.args], named)
        if isinstance(value, GroupedGemm):
            return Call(_GROUPED, [self.argument(list(value.weights))])
        if isinstance(value, StackedGemm):
            return Call(_STACKED, [self.argument(list(value.parts))])
        if isinstance(value, Gemm):
            if value.origin is None:
                raise NoRecipe("where a weight comes from is not known")
            return Call(_GEMM, [self.argument(e) for e in (value.origin, value.bias, value.dtype)])
        if isinstance(value, IntEnum) and kind in _PARTS:
            return Call(kind, [int(value)])
        if is_dataclass(value) and kind in _PARTS:
            names = [each.name for each in fields(value) if each.init]
            return Call(kind, [self.argument(getattr(value, name)) for name in names])
        raise NoRecipe(f"a {kind} needs the code that made it")

    def _constant(self, tensor: torch.Tensor) -> Any:
        """A tensor that no file decides."""
        self._constant_bytes += tensor.nbytes
        if self._constant_bytes > _MOST_CONSTANT:
            raise NoRecipe("it holds large tensors that come from no file")
        dtype = str(tensor.dtype).removeprefix("torch.")
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ["constant", dtype, list(tensor.shape), content]


def weights_from(recipe: list[Call], files: Tensors) -> Weights:
    """The weights that a recipe makes of the tensors in `files`. The peak of memory is that of the
    weights, and of the largest tensors that one of them is made of.

    Raises:
        ModelRefused: a tensor is not there, or a file ends too soon.
        OSError: a file cannot be read.
        Exception: anything else if this is not the recipe of the files.
    """
    found = _Follower(recipe, files).result(len(recipe) - 1)
    assert isinstance(found, Weights), "the last call of a recipe"
    return found


class _Follower:
    """Makes what one recipe says. Results that are used more than once are kept until the last
    use.
    """

    def __init__(self, recipe: list[Call], files: Tensors) -> None:
        self._recipe, self._files = recipe, files
        gemms = {_GROUPED: GroupedGemm, _STACKED: StackedGemm}
        quantised = {QUANTISED: packing_of}
        self._functions = FUNCTIONS | _PARTS | files.functions | gemms | quantised
        self._uses = Counter(
            number for each in recipe for number in _results_in([each.args, *each.named.values()])
        )
        self._kept: dict[int, Any] = {}

    def result(self, number: int) -> Any:
        """What a call returns."""
        found = self._kept.pop(number) if number in self._kept else self._made(number)
        self._uses[number] -= 1
        if self._uses[number] > 0:
            self._kept[number] = found
        return found

    def _made(self, number: int) -> Any:
        call = self._recipe[number]
        if call.function == _GEMM:
            return self._gemm(*call.args)
        joined = self._joined(["result", number])
        if joined is not None:
            return self._read(joined, joined.results[:-1]).to(dtype=joined.dtype, copy=True)
        args = [self._value(each) for each in call.args]
        named = {name: self._value(each) for name, each in call.named.items()}
        return self._functions[call.function](*args, **named)

    def _gemm(self, weight: Any, bias: Any, dtype: Any) -> Gemm:
        """A packed weight, of which the tensor is not needed behind that: so it may lie in memory
        that is used again for the next one.
        """
        made_bias, activations = self._value(bias), self._value(dtype)
        joined = self._joined(weight)
        if joined is None:
            return Gemm(self._value(weight), made_bias, activations)
        tensor = self._read(joined, joined.results).to(dtype=joined.dtype)
        return Gemm(tensor, made_bias, activations)

    def _read(self, joined: _Joined, results: list[int]) -> torch.Tensor:
        """Tensors of the files, instead of these results."""
        for number in results:
            self._uses[number] -= 1
        return self._files.read(*joined.parts)

    def _joined(self, argument: Any) -> _Joined | None:
        """What a tensor is read from, if it is nothing but some tensors below each other, perhaps
        converted.
        """
        if not _is_result(argument) or argument[1] in self._kept:
            return None
        call = self._recipe[argument[1]]
        if call.function == STORED:
            return _Joined([call.args[0]], None, [argument[1]])
        if call.function == "cat" and (call.args[1:], call.named.get("dim", 0)) == ([], 0):
            return _Joined.below([self._joined(each) for each in call.args[0][1:]], argument[1])
        if call.function not in ("getitem", "to"):
            return None
        whole = self._joined(call.args[0])
        if whole is None:
            return None
        if call.function == "to":
            dtypes = [each for each in (*call.args[1:], *call.named.values()) if _is_dtype(each)]
            return whole.converted([self._value(each) for each in dtypes], argument[1])
        return whole.part(call.args[1], argument[1])

    def _value(self, argument: Any) -> Any:
        """The value that an argument stands for."""
        if not isinstance(argument, list):
            return argument
        kind, *rest = argument
        if kind == "result":
            return self.result(rest[0])
        if kind == "list":
            return [self._value(each) for each in rest]
        if kind == "tuple":
            return tuple(self._value(each) for each in rest)
        if kind == "dict":
            return {name: self._value(each) for name, each in rest[0]}
        if kind == "slice":
            return slice(*rest)
        if kind == "dtype":
            return getattr(torch, rest[0])
        if kind == "device":
            return torch.device(rest[0])
        if kind == "constant":
            return _tensor(*rest)
        assert kind == "ellipsis", "all kinds of arguments"
        return ...


@dataclass(frozen=True, slots=True)
class _Joined:
    """Tensors of the files below each other, and the dtype that they are converted to."""

    parts: list[Part]
    dtype: torch.dtype | None
    results: list[int]  # of the recipe, which this stands for

    @classmethod
    def below(cls, several: list[_Joined | None], result: int) -> _Joined | None:
        """Some of them below each other, if they have one dtype."""
        found = [each for each in several if each is not None]
        if len(found) < len(several) or len({each.dtype for each in found}) > 1:
            return None
        parts = [part for each in found for part in each.parts]
        results = [number for each in found for number in each.results]
        return cls(parts, found[0].dtype, [*results, result])

    def part(self, index: Any, result: int) -> _Joined | None:
        """What a single tensor has at a number of its first dimension."""
        if type(index) is not int or len(self.parts) > 1 or not isinstance(self.parts[0], str):
            return None
        return replace(self, parts=[(self.parts[0], index)], results=[*self.results, result])

    def converted(self, dtypes: list[torch.dtype], result: int) -> _Joined | None:
        """The same in another dtype, if it was not converted before."""
        if len(dtypes) != 1 or self.dtype is not None:
            return None
        return replace(self, dtype=dtypes[0], results=[*self.results, result])


def _is_result(argument: Any) -> bool:
    return isinstance(argument, list) and argument[:1] == ["result"]


def _is_dtype(argument: Any) -> bool:
    return isinstance(argument, list) and argument[:1] == ["dtype"]


def _results_in(value: Any) -> list[int]:
    """The results that arguments name."""
    if _is_result(value):
        return [value[1]]
    if isinstance(value, list):
        return [number for each in value for number in _results_in(each)]
    return []


def _tensor(dtype: str, shape: list[int], content: bytes) -> torch.Tensor:
    values = torch.from_numpy(np.frombuffer(bytearray(content), np.uint8))
    return values.view(getattr(torch, dtype)).view(shape)
