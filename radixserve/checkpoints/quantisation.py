"""What `quantization_config` says of a checkpoint whose weights are quantised, and which of it is
served. Everything else is refused here in one sentence, before any weight is read.

Which modules are quantised is told by the tensors of each (`quantised_checkpoint`), so lists of
targets and of modules to leave out decide nothing here. The configuration tells in which forms
codes and scales may come; a weight that has none of them is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

_BITS = (4, 8)
_COMPRESSED = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
_MIXED = "mixed-precision"  # each group of modules names its own format
_MOST_GROUP = 1 << 20


class NotServed(Exception):
    """A checkpoint is quantised in a way that is not served. Says it as the rest of a sentence that
    begins with the model's name.
    """


class Layout(Enum):
    """How the tensors of a quantised weight are named and lie in a file."""

    GPTQ = "GPTQ, zero points less one"
    GPTQ_V2 = "GPTQ"
    AWQ = "AWQ"
    COMPRESSED = "compressed-tensors"
    FP8 = "FP8"
    MXFP4 = "MXFP4"


@dataclass(frozen=True, slots=True)
class Form:
    """A form of codes of integers."""

    bits: int
    group: int | None  # inputs that share a scale; None: all of a row
    is_symmetric: bool = True  # so that there may be no zero points


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the quantised weights of a checkpoint are stored."""

    method: str
    layout: Layout
    forms: tuple[Form, ...] = ()  # of integers
    block: tuple[int, int] | None = None  # outputs and inputs that share a scale of FP8
    rounds_activations: bool = False  # where the method also rounds activations, which are not here


def quantisation_of(settings: object) -> Quantisation | None:
    """How a checkpoint is quantised, by the `quantization_config` of its configuration; None if
    there is none.

    Raises:
        NotServed: it is quantised in a way that is not served.
    """
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise NotServed(f"is damaged: quantization_config is no object but {settings!r:.40}")
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        served = ", ".join(_METHODS)
        raise NotServed(f"is quantised by {str(method)[:40]}, which is not served ({served} are)")
    return _METHODS[method](settings)


def _gptq(settings: Mapping[str, Any]) -> Quantisation:
    stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if stored not in ("gptq", "gptq_v2") or settings.get("is_marlin_format"):
        raise _refused("checkpoint_format", stored, "gptq and gptq_v2 are")
    if settings.get("pack_dtype") not in (None, "int32"):
        raise _refused("pack_dtype", settings["pack_dtype"], "int32 is")
    others = settings.get("dynamic") or {}
    if not isinstance(others, dict) or not all(isinstance(each, dict) for each in others.values()):
        raise _refused("dynamic", others, "an object of objects is")
    forms = [_packed_form({**settings, **other}) for other in ({}, *others.values())]
    layout = Layout.GPTQ if stored == "gptq" else Layout.GPTQ_V2
    return Quantisation("GPTQ", layout, tuple(dict.fromkeys(forms)))


def _awq(settings: Mapping[str, Any]) -> Quantisation:
    version = settings.get("version") or settings.get("format") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise _refused("version", version, "gemm is")
    if settings.get("zero_point") is False:
        raise _refused("zero_point", False, "true is")
    form = _packed_form(settings)
    if form.bits != 4:
        raise _refused("bits", form.bits, "4 is")
    return Quantisation("AWQ", Layout.AWQ, (form,))


def _packed_form(settings: Mapping[str, Any]) -> Form:
    """The form that `bits` and `group_size` name."""
    bits = settings.get("bits", settings.get("w_bit"))
    group = settings.get("group_size", settings.get("q_group_size", 128))
    return Form(_bits("bits", bits), _group("group_size", group))


def _compressed(settings: Mapping[str, Any]) -> Quantisation:
    status = settings.get("quantization_status", "compressed")
    if status != "compressed":
        raise _refused("quantization_status", status, "compressed is")
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise _refused("sparsity_config", sparsity, "dense is")
    if settings.get("transform_config"):
        raise _refused("transform_config", "set", "weights without transforms are")
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(each, dict) for each in groups.values()):
        raise _refused("config_groups", groups, "an object of objects is")
    forms, block, rounds = dict[Form, None](), None, False
    for group in groups.values():
        _check_format(group.get("format") or settings.get("format"))
        weights = group.get("weights")
        if weights is None:
            continue
        if not isinstance(weights, dict):
            raise _refused("weights", weights, "an object is")
        rounds = rounds or bool(group.get("input_activations"))
        if weights.get("type", "int") == "float":
            block = _float_block(weights) or block
        else:
            forms[_integer_form(weights)] = None
    return Quantisation("compressed-tensors", Layout.COMPRESSED, tuple(forms), block, rounds)


def _check_format(found: object) -> None:
    if found not in (*_COMPRESSED, _MIXED):
        raise _refused("format", found, f"{', '.join(_COMPRESSED)} are")


def _integer_form(weights: Mapping[str, Any]) -> Form:
    group = weights.get("group_size")
    strategy = weights.get("strategy") or ("tensor" if group is None else "group")
    if strategy not in ("tensor", "channel", "group"):
        raise _refused("strategy", strategy, "tensor, channel and group are")
    of_row = strategy != "group"
    size = None if of_row else _group("group_size", group)
    bits = _bits("num_bits", weights.get("num_bits", 8))
    return Form(bits, size, bool(weights.get("symmetric", True)))


def _float_block(weights: Mapping[str, Any]) -> tuple[int, int] | None:
    """The block of FP8 weights that share a scale, if they do not share one by rows or all."""
    if weights.get("num_bits", 8) != 8:
        raise _refused("num_bits", weights["num_bits"], "8 is of floats")
    strategy = weights.get("strategy")
    if strategy in (None, "tensor", "channel"):
        return None
    if strategy != "block":
        raise _refused("strategy", strategy, "tensor, channel and block are of floats")
    return _block("block_structure", weights.get("block_structure"))


def _fp8(settings: Mapping[str, Any]) -> Quantisation:
    form = settings.get("fmt") or "e4m3"
    if form != "e4m3":
        raise _refused("fmt", form, "e4m3 is")
    size = settings.get("weight_block_size")
    block = None if size is None else _block("weight_block_size", size)
    return Quantisation("FP8", Layout.FP8, block=block, rounds_activations=True)


def _mxfp4(settings: Mapping[str, Any]) -> Quantisation:
    return Quantisation("MXFP4", Layout.MXFP4)


_METHODS: dict[str, Callable[[Mapping[str, Any]], Quantisation]] = {
    "compressed-tensors": _compressed,
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
}


def _bits(name: str, value: object) -> int:
    if type(value) is not int or value not in _BITS:
        raise _refused(name, value, "4 and 8 are")
    return value


def _group(name: str, value: object) -> int | None:
    if type(value) is not int or not (value == -1 or 0 < value <= _MOST_GROUP):
        raise _refused(name, value, "a number of inputs, or -1 for all of a row, is")
    return None if value == -1 else value


def _block(name: str, value: object) -> tuple[int, int]:
    sizes = value if isinstance(value, list) else []
    if len(sizes) != 2 or not all(type(each) is int and 0 < each <= _MOST_GROUP for each in sizes):
        raise _refused(name, value, "two numbers of outputs and inputs are")
    return sizes[0], sizes[1]


def _refused(name: str, value: object, served: str) -> NotServed:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return NotServed(f"is quantised with {name} {shown}, which is not served ({served})")
