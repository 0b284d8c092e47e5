"""What a decoder computes with: the weights and constants of its layers, the embedding, the output
layer, and the rotary tables. Knows neither transformers nor files.

All that differs between families of models is a field here; `model.decoder` says what a layer does
with it. Weights and biases of norms are float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import nn

from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cpu.activation import Activation
from radixserve.kernels.cpu.experts import Scores
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.grouped import GroupedGemm
from radixserve.kernels.cpu.gemm.stacked import StackedGemm
from radixserve.kernels.cpu.latent import HeadWeights
from radixserve.model.elementwise import RowwiseActivation
from radixserve.tensors.kv import StateShape

Table = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [rows, pairs], float32, of the pairs of numbers that are rotated."""

RowFunction = Callable[[torch.Tensor], torch.Tensor]
"""From rows [rows, columns] to as many rows, each computed by itself."""

Rotary = Callable[[torch.Tensor, torch.Tensor], Table]
"""The table of the rows of a step, from these rows of the stream, whose type its numbers are
rounded to, and their positions, int64 [rows].
"""

Add = Callable[[torch.Tensor, torch.Tensor], None]
"""Adds to what a linear has computed of an input: from the input [rows, in], to [rows, out]."""


class Linear(IntEnum):
    """The linears of a layer."""

    QKV = 0  # of a recurrence: its inputs
    OUT = 1
    UP = 2
    DOWN = 3


@dataclass(frozen=True, slots=True)
class Target:
    """What a module of the model is in the decoder: some outputs of one of its linears."""

    linear: int  # its number, see `Weights`
    output: int  # the first one
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class Norm:
    """(x - mean) / sqrt(mean((x - mean)**2) + epsilon) * weight + bias. The mean is that of x if
    the norm is centered (LayerNorm), else 0 (RMSNorm).
    """

    weight: torch.Tensor  # [width]
    bias: torch.Tensor | None
    epsilon: float
    is_centered: bool = False


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """The norms of queries and keys. Weight and bias hold those of all query heads, then those of
    all key heads, [(heads + kv_heads) * dim].
    """

    norm: Norm
    is_whole: bool = False  # all heads of q are normed together, and all of k
    is_late: bool = False  # after the heads are rotated


@dataclass(frozen=True, slots=True)
class Rope:
    """How a layer rotates queries and keys."""

    table: int  # which of the model's tables
    in_neighbours: bool = False  # pairs are numbers 2j and 2j + 1, else j and j + (number of pairs)


@dataclass(frozen=True, slots=True)
class Latent:
    """How a layer makes queries, keys and values by latents; `kernels.cpu.latent` says what is
    cached. Queries come from `Attention.qkv`, which reads `narrow` where that is.
    """

    narrow: Gemm | None  # [query's rank, width]
    narrow_norm: Norm | None  # of what it computes
    down: Gemm  # [rank + rotated, width]: the latent, then what is rotated of the key
    norm: Norm  # of the latent
    rotated: int  # numbers at the end of a key and of a query that are rotated
    keys: HeadWeights  # of each head, from the rest of a query to the space of latents
    values: HeadWeights  # of each head, from a latent to a value


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of a layer. `places`, int64 [heads + 2 * kv_heads], says where each head of q,
    k and v begins in a row of what `qkv` computes.
    """

    norm: Norm | None  # of what it reads
    qkv: Gemm  # [columns, width]
    places: torch.Tensor
    head_norm: HeadNorm | None
    rope: Rope | None  # None: the layer knows no positions
    attends: LayerAttention  # what, and with which weights
    o: Gemm
    latent: Latent | None = None  # None: `qkv` computes queries, keys and values
    gates: torch.Tensor | None = None  # places of those of heads in a row of `qkv`, int64 [heads]
    clip: float = 0.0  # the largest size of a number in q, k and v; 0: any
    inner_norm: Norm | None = None  # of what `o` reads
    post_norm: Norm | None = None  # of what it adds to the stream


@dataclass(frozen=True, slots=True)
class Convolution:
    """A causal convolution of each channel of a row over the last `taps` rows. Channels lie in
    pieces of one size; `kernels.cpu.convolution` says what is computed. Places, int64 [pieces], say
    where those of a piece begin in a row.
    """

    weight: torch.Tensor  # float32 [pieces, taps, channels of a piece], the oldest row first
    bias: torch.Tensor | None  # float32 [channels]
    places: torch.Tensor
    input_gates: torch.Tensor | None  # places of what inputs are multiplied by
    output_gates: torch.Tensor | None  # places of what the result is multiplied by
    is_silu: bool

    @property
    def inputs(self) -> int:
        """Numbers of its state: the inputs of all rows that it sees but the newest."""
        pieces, taps, channels = self.weight.shape
        return pieces * (taps - 1) * channels


@dataclass(frozen=True, slots=True)
class DeltaRule:
    """The gated delta rule; `kernels.cpu.delta_rule` says what is computed. A convolution gives its
    queries, keys and values. Places, int64 [heads], are those of gates in a row of what
    `Recurrence.inputs` computes.
    """

    key_heads: int
    k_dim: int
    z_places: torch.Tensor  # of v_dim numbers that multiply the result
    a_places: torch.Tensor  # of a number that says how much is kept
    b_places: torch.Tensor  # of a number that says how much is corrected
    rates: torch.Tensor  # float32 [heads], not above 0
    biases: torch.Tensor  # float32 [heads]
    norm: Norm  # of the result, [v_dim]

    @property
    def v_dim(self) -> int:
        return len(self.norm.weight)

    @property
    def matrices(self) -> int:
        """Numbers of its state."""
        return len(self.rates) * self.k_dim * self.v_dim


@dataclass(frozen=True, slots=True)
class StateSpace:
    """The state space of Mamba 2; `kernels.cpu.state_space` says what is computed. A convolution
    gives x, B and C. Places are those in a row of what `Recurrence.inputs` computes.
    """

    groups: int
    n_dim: int
    p_dim: int
    step_places: torch.Tensor  # int64 [heads]
    gate_places: torch.Tensor  # int64 [1], of numbers whose SiLU multiplies the result
    rates: torch.Tensor  # float32 [heads], not above 0
    biases: torch.Tensor  # float32 [heads], of steps
    skips: torch.Tensor  # float32 [heads]
    least: float  # step
    most: float  # step
    norm: Norm  # of the gated result, [heads * p_dim]

    @property
    def matrices(self) -> int:
        """Numbers of its state."""
        return len(self.rates) * self.n_dim * self.p_dim


@dataclass(frozen=True, slots=True)
class Recurrence:
    """What a layer with a state has in the place of attention."""

    inputs: Gemm  # [columns, width]
    convolution: Convolution  # of some of these columns
    o: Gemm
    rule: DeltaRule | StateSpace | None = None  # of what the convolution computes
    norm: Norm | None = None  # of what it reads
    post_norm: Norm | None = None  # of what it adds to the stream


def places_in_order(heads: int, kv_heads: int, dim: int) -> torch.Tensor:
    """The places of heads that lie one behind the other: those of q, of k, of v."""
    return torch.arange(heads + 2 * kv_heads) * dim


@dataclass(frozen=True, slots=True)
class Mlp:
    """The MLP of a layer."""

    norm: Norm | None  # of what it reads
    up: Gemm  # [inner, width], or [2 * inner, width]: gate, then up
    activation: Activation
    is_gated: bool
    down: Gemm
    constants: torch.Tensor | None = None  # of the activation, where it has some
    inner_norm: Norm | None = None  # of what `down` reads
    post_norm: Norm | None = None  # of what it adds to the stream


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses experts for each row, and their weights; `kernels.cpu.experts` says how. Equal scores
    go by the number of the expert, the lowest first.
    """

    logits: Gemm  # [experts, width]
    choices: int  # experts of a row
    scores: Scores = Scores.SOFTMAX
    correction: torch.Tensor | None = None  # float32 [experts], added to scores for the choice only
    groups: int = 1  # of experts
    kept_groups: int = 1  # whose experts can be chosen
    best_of_group: int = 2  # experts whose scores make that of a group
    is_normalised: bool = True  # whether the weights of a row are divided by their sum
    least_sum: float = 1e-20  # which they are divided by
    scale: float = 1.0  # of weights


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in the place of an MLP: the sum of what the chosen experts compute, in
    the order in which they are chosen.
    """

    norm: Norm | None  # of what it reads
    router: Router
    up: GroupedGemm  # of each expert [inner, width], or [2 * inner, width]: gate, then up
    activation: Activation
    is_gated: bool
    down: GroupedGemm
    constants: torch.Tensor | None = None  # of the activation
    shared: Mlp | None = None  # computes every row, and is added
    shared_gate: Gemm | None = None  # [1, width]: the sigmoid of this multiplies what is shared
    scale: float = 1.0  # of the sum
    post_norm: Norm | None = None  # of what it adds to the stream


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. In a parallel one the MLP reads the stream as it was before the layer, and
    without a norm of its own it reads what attention reads. One that norms the stream writes what
    the norms of its attention and its MLP give to the stream itself.
    """

    index: int
    mixer: Attention | Recurrence
    mlp: Mlp | Experts
    is_parallel: bool = False
    norms_stream: bool = False

    @property
    def attention(self) -> Attention:
        """The mixer of a layer that attends."""
        assert isinstance(self.mixer, Attention), "the layer has a state instead"
        return self.mixer

    @property
    def window(self) -> int | None:
        """How many positions a row sees; None: all, or none because the layer has a state."""
        return self.mixer.attends.window if isinstance(self.mixer, Attention) else None


@dataclass(frozen=True, slots=True)
class Embedding:
    """Gives rows of the stream. The scale is a number of the activations' type. The norm, which
    comes last but for the projection, is the decoder's to compute.
    """

    weight: torch.Tensor | Gemm  # [vocab, width]
    scale: float = 1.0
    widen: RowFunction | None = None  # of the scaled rows, to the stream's width
    positions: torch.Tensor | None = None  # [positions, width], added
    norm: Norm | None = None  # of the sum
    project: RowFunction | None = None  # of the normed sum, to the stream's width

    def lookup(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The function from token ids [rows] and positions [rows], both int64, to [rows, width]."""
        table = self.weight
        rows = table.lookup() if isinstance(table, Gemm) else lambda ids: F.embedding(ids, table)

        def embed(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            found = rows(ids)
            found = found if self.scale == 1.0 else found * self.scale
            found = found if self.widen is None else self.widen(found)
            return found if self.positions is None else found + self.positions[positions]

        return embed


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer. Logits are float32 also where activations are bfloat16: rounded, many would
    be equal.
    """

    norm: Norm | None
    weight: Gemm  # [vocab, width]
    transform: RowFunction | None = None  # of the normed stream
    scale: float = 1.0  # of logits
    softcap: float | None = None  # logits are softcap * tanh(logits / softcap)

    def logits(self, x: torch.Tensor, add: Add | None = None) -> torch.Tensor:
        """float32 [rows, vocab] of the normed stream [rows, width]. `add` adds to the product of
        the weight.
        """
        x = x if self.transform is None else self.transform(x)
        found = self.weight.unrounded(x)
        if add is not None:
            add(x.float(), found)
        found = found if self.scale == 1.0 else found * self.scale
        return found if self.softcap is None else _tanh(found / self.softcap) * self.softcap


_tanh = RowwiseActivation(nn.Tanh())


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights and constants of a decoder. Its linears have numbers: `Linear` k of layer i is
    number i * len(Linear) + k, and behind those of all layers comes the output layer.
    """

    heads: int  # of queries
    embedding: Embedding
    tables: list[Rotary]
    layers: list[Layer]
    head: Head
    residual_scale: float = 1.0  # of what layers add to the stream
    # The model's modules that multiply by these weights, by name.
    targets: dict[str, Target] = field(default_factory=dict)

    @property
    def num_linears(self) -> int:
        return len(self.layers) * len(Linear) + 1

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer, how many positions a row sees; None: all. Empty: none has a window."""
        found = tuple(layer.window for layer in self.layers)
        return found if any(found) else ()

    def linears(self) -> list[Gemm | None]:
        """All linears, by their numbers. Those of the MLP of a layer with experts are what these
        share, None if they share nothing.
        """
        found: list[Gemm | None] = []
        for layer in self.layers:
            mixer, mlp = layer.mixer, layer.mlp
            plain = mlp.shared if isinstance(mlp, Experts) else mlp
            found += mixer.qkv if isinstance(mixer, Attention) else mixer.inputs, mixer.o
            found += (None, None) if plain is None else (plain.up, plain.down)
        return [*found, self.head.weight]

    def state_shape(self) -> StateShape | None:
        """The shape of a state, which is the same in all layers that have one; None if none has."""
        recurrent = [each.mixer for each in self.layers if isinstance(each.mixer, Recurrence)]
        if not recurrent:
            return None
        (inputs,) = {each.convolution.inputs for each in recurrent}
        (matrices,) = {0 if each.rule is None else each.rule.matrices for each in recurrent}
        is_recurrent = tuple(isinstance(each.mixer, Recurrence) for each in self.layers)
        return StateShape(is_recurrent, inputs, matrices)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, as they lie in memory: weights are packed."""
        named = [*_tensors("embedding", self.embedding), *_tensors("head", self.head)]
        for layer in self.layers:
            named += _tensors(str(layer.index), layer)
        return dict(named)

    def bytes_by_format(self) -> dict[str, int]:
        """How many bytes packed weights take in each format, those with the most first."""
        found: Counter[str] = Counter()
        for each in {id(gemm): gemm for gemm in _gemms(self)}.values():
            format = each.panels.format
            name = _FLOATS[each.bits] if format is None else format.name
            found[name] += each.panels.memory.nbytes
        return dict(found.most_common())


_FLOATS = {32: "float32", 16: "bfloat16"}  # by their bits


def _gemms(part: object) -> Iterator[Gemm]:
    """The packed weights of a dataclass and of what is in it."""
    if isinstance(part, StackedGemm):
        yield from _gemms(list(part.parts))
    elif isinstance(part, Gemm):
        yield part
    elif isinstance(part, GroupedGemm):
        yield from _gemms(list(part.weights))
    elif isinstance(part, list):
        for each in part:
            yield from _gemms(each)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _gemms(getattr(part, field.name))


def _tensors(name: str, part: object) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a dataclass and of the dataclasses in it."""
    if isinstance(part, torch.Tensor):
        yield name, part
    elif isinstance(part, StackedGemm):
        for number, each in enumerate(part.parts):
            yield from _tensors(f"{name} {number}", each)
    elif isinstance(part, Gemm):
        rows, inputs = part.panels.shape
        yield f"{name} [{rows}, {inputs}], {part.bits} bits", part.panels.memory
        if part.bias is not None:
            yield f"{name} bias", part.bias
    elif isinstance(part, GroupedGemm):
        for number, weight in enumerate(part.weights):
            yield from _tensors(f"{name} {number}", weight)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _tensors(f"{name}.{field.name}", getattr(part, field.name))
