"""Decode steps over fixed buffers, with a capture that records nothing: each replay runs the step
again.

The attention here reads what a kernel on a device would read, the buffers, and nothing else of the
plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from radixserve.kernels.attention import LayerAttention
from radixserve.kernels.cuda.attention_work import Blocks, Cut
from radixserve.kernels.step import AttentionPlan
from radixserve.model.attention import interface
from radixserve.model.graphs import DecodeGraphs, bucket
from radixserve.model.loaded import LoadedModel
from radixserve.model.runner import Runner
from radixserve.step import Chunk, Logits
from radixserve.tensors.kv import KVPool
from tests.tiny import chunk, load_tiny

SLOTS = 400
Run = Callable[[], torch.Tensor]


def attend_buffers(
    q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
) -> torch.Tensor:
    """One row after the other, from `plan.prepared` and the tensors on the device."""
    kv_heads = plan.pool.shape.kv_heads
    if not isinstance(plan.prepared, Blocks):
        plan.prepared = Blocks.of(Cut.of(plan.spans, 1, kv_heads), kv_heads, q.device)
    out = torch.empty_like(q)
    blocks = plan.prepared.blocks
    for row, begin, start in zip(blocks.row, blocks.begin, blocks.start, strict=True):
        slots = plan.device_table[begin : begin + start + 1]
        k, v = (
            pool[layer][slots].repeat_interleave(q.shape[1] // kv_heads, 1)
            for pool in (plan.pool.k, plan.pool.v)
        )
        weights = (torch.einsum("hd,shd->hs", q[row], k) * attention.scaling).softmax(-1)
        out[row] = torch.einsum("hs,shd->hd", weights, v)
    return out


AttentionInterface.register("buffers", interface(attend_buffers))


class Capture:
    """Counts; `broken` captures raise, as on a device that cannot record some operator."""

    def __init__(self, *, broken: bool = False) -> None:
        self.count = 0
        self.broken = broken

    def __call__(self, run: Run) -> Run:
        self.count += 1
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing")
        run()
        return run


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = replace(load_tiny("llama_grouped"), decoder=None)  # the decoder is the CPU's
    model.model.set_attn_implementation("buffers")  # type: ignore[operator]
    return model


def graphs(
    loaded: LoadedModel, capture: Callable[[Run], Run], max_batch: int = 4
) -> tuple[DecodeGraphs, KVPool]:
    """Graphs over a pool with something in each slot; the last is theirs."""
    pool = KVPool(loaded.shape, SLOTS, loaded.device)
    for tensor in (pool.k, pool.v):
        tensor.normal_(generator=torch.Generator().manual_seed(1))
    made = DecodeGraphs(loaded, pool, scratch_slot=SLOTS - 1, max_batch=max_batch, capture=capture)
    return made, pool


def decodes(*positions: int, seed: int = 0) -> list[Chunk]:
    """One token of a sequence at each position; the sequences lie anywhere and share no slots."""
    slots, free, chunks = np.random.default_rng(seed).permutation(SLOTS - 1).tolist(), 0, []
    for i, position in enumerate(positions):
        chunks.append(chunk([i + 3], position, slots[free:], Logits.LAST))
        free += position + 1
    return chunks


def test_batch_sizes_go_up_in_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 64, 65)] == [1, 2, 4, 4, 8, 8, 16, 64, 128]


@pytest.mark.parametrize(
    "positions", [(0,), (70,), (5, 129), (1, 64, 63), (100, 3, 0, 30)], ids=str
)
def test_a_replayed_step_is_the_step(loaded: LoadedModel, positions: tuple[int, ...]) -> None:
    made, pool = graphs(loaded, Capture())
    _, other = graphs(loaded, Capture())
    for seed in (0, 1):
        step = decodes(*positions, seed=seed)
        replayed = made.forward(step)
        assert replayed is not None
        assert torch.equal(replayed, Runner(loaded, other).forward(step))
        assert torch.equal(pool.k[:, :-1], other.k[:, :-1])
        assert torch.equal(pool.v[:, :-1], other.v[:, :-1])


@pytest.mark.parametrize("replays", [True, False], ids=["graph", "plain"])
def test_ids_that_only_the_device_knows_are_taken_from_the_step_before(
    loaded: LoadedModel, replays: bool
) -> None:
    made, pool = graphs(loaded, Capture())
    runner = Runner(loaded, pool, made if replays else None)
    known = decodes(5, 129, 64)
    drawn = torch.tensor([90, int(known[2].token_ids[0]), 91, int(known[0].token_ids[0])])
    zero = np.zeros(1, np.int32)
    step = [
        replace(known[0], token_ids=zero, drawn_row=3),
        known[1],
        replace(known[2], token_ids=zero, drawn_row=1),
    ]
    assert torch.equal(runner.forward(step, drawn), runner.forward(known))
    prompt = chunk([1, 2, 3], 0, range(390, 393), Logits.LAST)
    assert torch.equal(runner.forward([prompt, *step], drawn), runner.forward([prompt, *known]))


def test_each_size_is_captured_once_and_when_it_is_needed(loaded: LoadedModel) -> None:
    capture = Capture()
    made, _ = graphs(loaded, capture)
    for positions, captured in (
        ((1,), 1),
        ((2, 3), 2),
        ((9,), 2),
        ((1, 2, 3), 3),
        ((1, 2, 3, 4), 3),
        ((5, 5), 3),
    ):
        assert made.forward(decodes(*positions)) is not None
        assert capture.count == captured


def test_inputs_never_move(loaded: LoadedModel) -> None:
    seen = []

    def attend(
        q: torch.Tensor, layer: int, plan: AttentionPlan, attention: LayerAttention
    ) -> torch.Tensor:
        assert isinstance(plan.prepared, Blocks)
        columns = (*plan.prepared.blocks, *plan.prepared.rows)
        tensors = (plan.write_slots, plan.device_table, *columns)
        seen.append([(tensor.data_ptr(), tensor.shape) for tensor in tensors])
        assert all(tensor.data_ptr() % 16 == seen[0][0][0] % 16 for tensor in tensors), (
            "one compiled kernel for all"
        )
        return q

    AttentionInterface.register("addresses", interface(attend))
    made, _ = graphs(loaded, Capture())
    loaded.model.set_attn_implementation("addresses")  # type: ignore[operator]
    for positions in ((7, 8, 9), (100, 3, 50), (0, 0, 0, 0)):
        assert made.forward(decodes(*positions)) is not None
    loaded.model.set_attn_implementation("buffers")  # type: ignore[operator]
    assert len(seen) == 2 * 4  # two layers; the capture ran once more
    assert all(each == seen[0] for each in seen)


def test_only_decode_steps_that_fit_are_replayed(loaded: LoadedModel) -> None:
    capture = Capture()
    made, _ = graphs(loaded, capture, max_batch=2)
    slots = list(range(200))
    assert made.forward([chunk([1, 2], 7, slots)]) is None, "a prefill chunk"
    assert made.forward([*decodes(4), chunk([1, 2], 7, slots)]) is None, (
        "a prefill chunk beside a decode"
    )
    assert made.forward(decodes(1, 2, 3)) is None, "more sequences than it was made for"
    assert capture.count == 0


def test_a_step_with_larger_tables_than_the_buffer_is_not_replayed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("radixserve.kernels.cuda.step_inputs._MAX_TABLE", 30)
    made, _ = graphs(loaded, Capture())
    assert made.forward(decodes(14, 14)) is not None
    assert made.forward(decodes(14, 15)) is None
    assert made.forward(decodes(9, 9, 9)) is None, "padding takes a slot too"


def test_what_cannot_be_captured_runs_without_a_graph(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    capture = Capture(broken=True)
    made, pool = graphs(loaded, capture)
    step = decodes(4, 5)
    assert made.forward(step) is None
    assert made.forward(step) is None
    assert capture.count == 1, "it is not tried again"
    assert "decode steps of 2 sequences cannot be captured: operation not permitted" in caplog.text
    assert Runner(loaded, pool, made).forward(step).shape == (2, loaded.vocab_size)
    capture.broken = False
    assert made.forward(decodes(4)) is not None, "other sizes are"


def test_the_runner_replays_decodes_and_computes_the_rest(loaded: LoadedModel) -> None:
    capture = Capture()
    made, pool = graphs(loaded, capture)
    runner = Runner(loaded, pool, made)
    runner.forward([chunk([1, 2, 3], 0, range(10), Logits.LAST)])
    assert capture.count == 0
    runner.forward(decodes(4))
    assert capture.count == 1


def test_the_check_at_start_accepts_a_true_replay_and_no_other(loaded: LoadedModel) -> None:
    assert graphs(loaded, Capture())[0].check() is None
    wrong = graphs(loaded, lambda run: lambda: run() + 1)[0].check()
    assert wrong is not None
    assert wrong.startswith("a captured decode step gives other logits (difference 1,")
    broken = graphs(loaded, Capture(broken=True))[0].check()
    assert broken == (
        "decode steps of 1 sequences cannot be captured: operation not permitted when "
        "stream is capturing"
    )
