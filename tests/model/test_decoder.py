"""The decoder: used where it agrees with the model's own modules; run now or recorded."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from radixserve.engine.giving_way import GivenUp
from radixserve.kernels.cpu.gemm.block import SEGMENT
from radixserve.kernels.cpu.gemm.call import FEW, segments_of
from radixserve.kernels.step import AttentionPlan
from radixserve.model import operations
from radixserve.model.decoder import Decoder
from radixserve.model.read_activation import NotRead
from radixserve.model.read_family import decoder_of
from radixserve.model.rotary_tables import for_few_rows
from radixserve.model.runner import Runner
from radixserve.step import Logits
from radixserve.tensors.kv import KVPool, KVShape
from tests.tiny import CONFIGS, CPU, VOCAB, chunk, load_tiny, with_own_modules

IN_PANELS = ("llama_in_panels", "qwen3_in_panels")
KNOWN = (
    "llama",
    "llama_grouped",
    *IN_PANELS,
    "qwen2",
    "qwen3",
    "mistral",
    "gpt2",
    "mixtral",
    "qwen3_moe",
)
SHAPE = KVShape(1, 2, 24, 24, torch.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_serves_the_architectures_it_knows_and_no_other(name: str) -> None:
    assert (load_tiny(name).decoder is not None) == (name in KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_its_logits_are_those_of_the_models_own_modules(name: str) -> None:
    loaded = load_tiny(name)
    ids = torch.randint(0, VOCAB, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    ours, own = (
        Runner(each, KVPool(each.shape, 100, CPU)).forward([chunk(ids, 0, range(100))])
        for each in (loaded, with_own_modules(loaded))
    )
    torch.testing.assert_close(ours, own, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", KNOWN)
def test_every_packed_weight_is_told_in_its_format(name: str) -> None:
    decoder = load_tiny(name).decoder
    assert decoder is not None
    told = decoder.weights.bytes_by_format()
    packed = {
        each.data_ptr(): each.nbytes
        for label, each in decoder.weights.tensors().items()
        if label.endswith(" bits")
    }
    assert sum(told.values()) == sum(packed.values())
    assert set(told) <= {"float32", "bfloat16", "grid_4", "grid_8"}


@pytest.mark.parametrize("name", IN_PANELS)
def test_a_step_of_few_rows_as_one_program_gives_the_bits_of_layer_by_layer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_tiny(name)
    assert isinstance(loaded.decoder, Decoder)
    assert loaded.decoder.most_recorded == FEW
    ids = torch.randint(0, VOCAB, (340,), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for most_recorded in (loaded.decoder.most_recorded, 0):
        monkeypatch.setattr(loaded.decoder, "most_recorded", most_recorded)
        pool = KVPool(loaded.shape, 1000, CPU)
        run = Runner(loaded, pool)
        run.forward([chunk(ids[:300], 0, range(300))])
        tables = [[*range(300), *range(400 + 100 * i, 500 + 100 * i)] for i in range(3)]
        first = run.forward([chunk(ids[300:340], 300, tables[0], Logits.LAST)])
        several = run.forward(
            [chunk(ids[300 : 310 + i], 300, table) for i, table in enumerate(tables)]
        )
        found.append((first, several, pool.k.clone(), pool.v.clone()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("most_recorded", [FEW, 0], ids=["as a program", "layer by layer"])
def test_a_step_that_was_given_up_between_layers_gives_the_same_bits_when_computed_again(
    most_recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_tiny("llama")
    monkeypatch.setattr(loaded.decoder, "most_recorded", most_recorded)
    monkeypatch.setattr(operations, "_PART", 1)
    step = [chunk([*range(20)], 0, range(20)), chunk([3], 0, [30])]
    run = Runner(loaded, KVPool(loaded.shape, 100, CPU))
    whole = run.forward(step).clone()
    looks: list[int] = []
    for given_up in range(1, 100):
        looks.clear()

        def look(last: int = given_up) -> None:
            looks.append(1)
            if len(looks) == last:
                raise GivenUp

        with contextlib.suppress(GivenUp):
            assert torch.equal(run.forward(step, None, look), whole)
            break
        assert torch.equal(run.forward(step), whole)
    assert len(looks) == given_up - 1 > 0


def test_rotary_rows_that_are_kept_have_the_bits_of_the_table() -> None:
    decoder = load_tiny("llama_in_panels").decoder
    assert isinstance(decoder, Decoder)
    (table,) = decoder.weights.tables
    known, x = for_few_rows(table), torch.empty(1, 1)
    for step in ([0], [1023, 5, 1024], [2050], [32768, 3]):
        positions = torch.tensor(step)
        for found, wanted in zip(known(x, positions), table(x, positions), strict=True):
            assert torch.equal(found, wanted)


def test_what_is_asked_for_early_covers_the_slots_of_the_step_and_little_else() -> None:
    pool = KVPool(replace(SHAPE, layers=1), 4000, CPU)
    step = AttentionPlan.of(
        [
            chunk([1], 899, range(1000, 1900)),
            chunk([1], 499, [*range(1000, 1400), *range(3900, 4000)]),
        ],
        pool,
    )
    size, offsets = SHAPE.kv_heads * SHAPE.k_dim * 4, segments_of(step)
    asked = {place for offset in offsets for place in range(offset, offset + SEGMENT)}
    assert {
        place for slot in step.table.tolist() for place in (slot * size, (slot + 1) * size - 1)
    } <= asked
    assert len(asked) <= 1000 * size + 4 * SEGMENT


def test_one_that_disagrees_is_not_used_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        Decoder, "__call__", lambda self, ids, plan, wanted, _=None: torch.zeros(len(wanted), VOCAB)
    )
    with caplog.at_level(logging.WARNING):
        loaded = load_tiny("llama")
    assert loaded.decoder is None
    assert loaded.exact
    assert "the model's own modules are used" in caplog.text


def test_another_activation_keeps_the_models_own_modules() -> None:
    model: Any = load_tiny("llama").model
    model.model.layers[0].mlp.act_fn = torch.nn.Tanh()
    with pytest.raises(NotRead, match="no kernel for the activation Tanh"):
        decoder_of(model)
