"""Loads adapters for a model: finds the place of each factor in the decoder, packs it, and tells
which K/V the adapter changes.

An adapter leaves K and V of all layers as they are if it changes nothing but the queries, the
output of attention and the MLP of the last layer, and the output layer: what any other module adds
gets into K or V of its own layer or, through the residual stream, of the layers behind it. Its
K/V is then that of the model without it. Otherwise it is that of the factors which can change it,
which `kv_digest` names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from radixserve.checkpoints.adapter_files import OpenedAdapter, Pair, refuse_missing
from radixserve.checkpoints.headers import listed, short
from radixserve.errors import AdapterRefused
from radixserve.kernels.cpu import native
from radixserve.kernels.cpu.low_rank import (
    MOST_PARTS,
    MOST_RANK,
    PackedAdapter,
    Part,
    low_rank_kernel,
    room_for,
)
from radixserve.model.loaded import LoadedModel
from radixserve.model.weights import Attention, Layer, Linear, Target, Weights

_DIGITS = 32  # of a digest's 64


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """The factors of an adapter in memory, and what others need to know of it. Two adapters with
    the same digest compute the same.
    """

    packed: PackedAdapter
    digest: str
    kv_digest: str  # of what changes K/V; "" if nothing does
    rank: int  # the largest

    @property
    def address(self) -> int:
        """Of its table; it is valid while this object lives."""
        return self.packed.address

    @property
    def num_bytes(self) -> int:
        return self.packed.num_bytes


def prepare_kernel(loaded: LoadedModel) -> None:
    """Compile the kernel that steps with adapters need, or read its code from the disk, so that no
    step has to. Compiling takes seconds. Does nothing for a model that takes no adapters.
    """
    if loaded.decoder is not None:
        native.address(low_rank_kernel(loaded.dtype))


def check_adapter(opened: OpenedAdapter, loaded: LoadedModel) -> dict[str, Target]:
    """Where the modules of an adapter are in a model. Reads nothing.

    Raises:
        AdapterRefused: the model takes no adapters, or is not the one that this adapter was made
            for; one sentence says why.
    """
    if loaded.decoder is None:
        reason = loaded.generic_reason or "it runs through its own modules"
        raise AdapterRefused(f"Adapters need the fast forward, which this model has not: {reason}.")
    weights = loaded.decoder.weights
    unknown = [pair.module for pair in opened.pairs if pair.module not in weights.targets]
    if unknown:
        raise AdapterRefused(
            f"{opened.folder} changes modules that this model has not, or that take no adapter: "
            f"{listed(unknown)}."
        )
    refuse_missing(opened, list(weights.targets))
    found = {pair.module: weights.targets[pair.module] for pair in opened.pairs}
    for pair in opened.pairs:
        _check_shapes(pair, found[pair.module], opened)
    return found


def _check_shapes(pair: Pair, target: Target, opened: OpenedAdapter) -> None:
    if (pair.outputs, pair.inputs) != (target.outputs, target.inputs):
        raise AdapterRefused(
            f"{opened.folder} is made for another model: {short(pair.module)} is "
            f"[{pair.outputs}, {pair.inputs}] there and [{target.outputs}, {target.inputs}] here."
        )
    if pair.rank > MOST_RANK:
        raise AdapterRefused(
            f"{opened.folder}: {short(pair.module)} has rank {pair.rank}; at most {MOST_RANK} is "
            "served."
        )


def load_adapter(opened: OpenedAdapter, loaded: LoadedModel) -> LoadedAdapter:
    """Read and pack an adapter. Takes some seconds for each gigabyte.

    Raises:
        AdapterRefused: as `check_adapter`, or a tensor cannot be read.
    """
    targets = check_adapter(opened, loaded)
    assert loaded.decoder is not None, "checked above"
    weights = loaded.decoder.weights
    room = sum(room_for(pair.rank, pair.inputs, pair.outputs) for pair in opened.pairs)
    packed = PackedAdapter(weights.num_linears, room)
    whole, of_kv = hashlib.sha256(), hashlib.sha256()
    changes_kv = False
    for number, pairs in _by_linear(opened.pairs, targets).items():
        parts = []
        for pair in pairs:
            first, second = pair.read()
            target, digest = targets[pair.module], pair.digest(first, second)
            whole.update(digest)
            if touches_kv(target, weights):
                of_kv.update(digest)
                changes_kv = True
            parts.append(Part(first, second, pair.scale, target.output))
        packed.add(number, parts)
    return LoadedAdapter(
        packed,
        whole.hexdigest()[:_DIGITS],
        of_kv.hexdigest()[:_DIGITS] if changes_kv else "",
        max(pair.rank for pair in opened.pairs),
    )


def _by_linear(pairs: Sequence[Pair], targets: dict[str, Target]) -> dict[int, list[Pair]]:
    """The pairs of each linear, in the order of their outputs."""
    found: dict[int, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda each: targets[each.module].output):
        found.setdefault(targets[pair.module].linear, []).append(pair)
    assert all(len(each) <= MOST_PARTS for each in found.values()), "a linear has few parts"
    return dict(sorted(found.items()))


def touches_kv(target: Target, weights: Weights) -> bool:
    """Whether what is added there can change K or V of any layer."""
    index, which = divmod(target.linear, len(Linear))
    if index < len(weights.layers) - 1:
        return True
    if index >= len(weights.layers) or which != Linear.QKV:
        return False
    return _holds_kv(target, weights.layers[index], weights.heads)


def _holds_kv(target: Target, layer: Layer, heads: int) -> bool:
    """Whether K or V of a layer are among these outputs of its linear, or what its state is made
    of.
    """
    if not isinstance(layer.mixer, Attention):
        return True
    places = layer.attention.places[heads:]
    return bool(((places >= target.output) & (places < target.output + target.outputs)).any())
