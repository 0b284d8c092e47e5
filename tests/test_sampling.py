"""Sampling against a slow oracle in plain Python, bit for bit, alone and in batches."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from radixserve.request import Sampling
from radixserve.sampling import Sampled, sampler
from radixserve.sampling.uniform import philox4x32, uniforms
from tests.rows import Row


def row(prompt: list[int] | None = None, output: list[int] | None = None, **fields: Any) -> Row:
    given_fields = {"max_tokens": 64, "seed": 7} | fields
    return Row(
        Sampling(**given_fields),
        np.array(prompt or [], dtype=np.int32),
        np.array(output or [], dtype=np.int32),
    )


def sample(logits: torch.Tensor, rows: list[Row], *, ahead: bool = False) -> list[Sampled | None]:
    return sampler.sample(logits, rows, ahead=ahead).wait()


def draw_one(logits: list[float] | torch.Tensor, one: Row) -> int:
    [sampled] = sample(torch.as_tensor(logits, dtype=torch.float32)[None], [one])
    assert sampled is not None
    return sampled.token_id


def normal_logits(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)).mul_(scale)


# -- the oracle: one row, one token at a time, integers where the definition says integers
# ---------------------------


def oracle_edit(logits: list[float], one: Row) -> list[float]:
    s, f = one.sampling, np.float32
    x = [f(v) for v in logits]
    for token in set(one.prompt_ids.tolist()) | set(one.output_ids.tolist()):
        penalty = f(s.repetition_penalty)
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token, count in Counter(one.output_ids.tolist()).items():
        x[token] = x[token] - f(s.presence_penalty + count * s.frequency_penalty)
    for token, bias in s.logit_bias.items():
        x[token] = x[token] + f(bias)
    if len(one.output_ids) < s.min_tokens:
        for token in s.stop_token_ids:
            x[token] = f(-math.inf)
    return [float(v) for v in x]


def oracle(logits: list[float], one: Row) -> int:
    s, x = one.sampling, oracle_edit(logits, one)
    order = sorted(range(len(x)), key=lambda token: (-x[token], token))
    if s.temperature == 0:
        return order[0]
    top = np.float32(x[order[0]])
    with np.errstate(over="ignore"):
        scaled = [(np.float32(v) - top) / np.float32(max(s.temperature, 1.1754944e-38)) for v in x]
    weight = [int(float(torch.tensor(float(v), dtype=torch.float32).exp()) * 2**40) for v in scaled]
    kept = order[: s.top_k] if s.top_k > 0 else order
    wanted = max(1, math.ceil(float(sum(weight[t] for t in kept)) * s.top_p))
    nucleus, mass = [], 0
    for token in kept:
        if mass >= wanted:
            break
        nucleus.append(token)
        mass += weight[token]
    nucleus = sorted(t for t in nucleus if weight[t] >= math.ceil(s.min_p * 2**40))
    total = sum(weight[t] for t in nucleus)
    [uniform] = uniforms([s.seed], [len(one.output_ids)])
    target = min(int(float(uniform) * float(total)), total - 1)
    for token in nucleus:
        target -= weight[token]
        if target < 0:
            return token
    raise AssertionError("the target lies below the total")


VOCAB = 23
tokens = st.integers(0, VOCAB - 1)
logit = st.one_of(
    st.floats(-20, 20, width=32), st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 1.0, 2.0])
)
samplings = st.builds(
    Sampling,
    max_tokens=st.just(64),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.0, 100.0]),
    top_p=st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 22, 23, 50]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    min_tokens=st.integers(0, 3),
    stop_token_ids=st.lists(tokens, max_size=3).map(tuple),
    presence_penalty=st.sampled_from([0.0, -2.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -1.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=3),
)
rows_of_any_kind = st.builds(
    lambda s, p, o: Row(s, np.array(p, dtype=np.int32), np.array(o, dtype=np.int32)),
    samplings,
    st.lists(tokens, max_size=12),
    st.lists(tokens, max_size=8),
)
batches = st.lists(
    st.tuples(st.lists(logit, min_size=VOCAB, max_size=VOCAB), rows_of_any_kind),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches, st.sampled_from([3, 512]))
def test_every_row_of_a_batch_equals_the_plain_python_oracle(
    batch: list[tuple[list[float], Row]], few: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_FEW", few)
        patch.setattr(sampler, "_MANY", 4 * few)
        drawn = sample(torch.tensor([logits for logits, _ in batch]), [one for _, one in batch])
    for (logits, one), sampled in zip(batch, drawn, strict=True):
        if max(logits) == -math.inf or max(oracle_edit(logits, one)) == -math.inf:
            assert sampled is None
        else:
            assert sampled == Sampled(oracle(logits, one), None)


# -- bits do not depend on the batch
# --------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"top_k": 50, "top_p": 0.9},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 3.0},
    {"min_p": 0.01, "logprobs": 3},
    {"temperature": 0.0, "logprobs": 20},
    {"top_k": 2000, "top_p": 0.95},
    {"repetition_penalty": 1.2, "presence_penalty": 0.3, "logprobs": 0},
]


@pytest.mark.parametrize("vocab", [49_152, 50_257, 1_001])
@pytest.mark.parametrize("digits", [None, 1])
def test_a_row_alone_gives_the_same_bits_as_among_31_others(vocab: int, digits: int | None) -> None:
    logits = normal_logits(32, vocab)
    if digits is not None:  # many equal logits, as in half precision
        logits = logits.round(decimals=digits)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, vocab, (32, 40)).tolist()
    rows = [row(ids[i][:30], ids[i][30:], seed=i, **KINDS[i % len(KINDS)]) for i in range(32)]
    together = sample(logits, rows)
    for i, one in enumerate(rows):
        assert sample(logits[i : i + 1], [one]) == [together[i]]
    order = rng.permutation(32).tolist()
    assert sample(logits[order], [rows[i] for i in order]) == [together[i] for i in order]


@pytest.mark.parametrize("vocab", [49_152, 32_003, 17])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_float_operations_in_use_give_each_row_the_same_bits_in_any_batch(
    vocab: int, threads: int
) -> None:
    before, logits = torch.get_num_threads(), normal_logits(33, vocab)
    operations = [
        lambda x: x.log_softmax(-1),
        lambda x: (x - x.amax(-1, keepdim=True)).div_(0.7).exp_(),
        lambda x: x.amax(-1),
    ]
    try:
        torch.set_num_threads(threads)
        for operation in operations:
            together = operation(logits)
            for start, stop in [(0, 1), (1, 3), (5, 12), (16, 32), (32, 33)]:
                assert torch.equal(operation(logits[start:stop]), together[start:stop])
    finally:
        torch.set_num_threads(before)


def test_the_exponential_of_a_number_does_not_depend_on_its_place() -> None:
    values = normal_logits(1, 4096, scale=10.0)[0]
    whole = values.exp()
    for offset in range(17):
        for count in (1, 3, 7, 50, 1000):
            assert torch.equal(
                values[offset : offset + count].exp(), whole[offset : offset + count]
            )


def test_logits_are_left_as_they_are() -> None:
    logits = normal_logits(2, 100)
    before = logits.clone()
    sample(logits, [row([1, 2], [3], repetition_penalty=2.0), row(logit_bias={5: 3.0})])
    assert torch.equal(logits, before)


def test_a_nucleus_wider_than_the_short_list_is_drawn_from_the_whole_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, rows = (
        normal_logits(8, 3000),
        [row(seed=i, top_p=0.97, temperature=2.0) for i in range(8)],
    )
    expected = sample(logits, rows)
    for few in (1, 16, 3000):
        monkeypatch.setattr(sampler, "_FEW", few)
        assert sample(logits, rows) == expected


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_a_draw_that_never_waits_is_the_same(spread: float) -> None:
    kinds = [
        *KINDS,
        {"temperature": 0.0},
        {"top_p": 0.5, "logprobs": 3},
        {"top_p": 0.99, "min_p": 0.001},
    ]
    logits = normal_logits(len(kinds), 5000, scale=spread)
    rows = [row([1, 2], [3, 3], seed=i, **kind) for i, kind in enumerate(kinds)]
    assert sample(logits, rows, ahead=True) == sample(logits, rows)


def test_the_ids_on_the_device_are_those_that_arrive() -> None:
    logits, rows = (
        normal_logits(4, 3000),
        [row(seed=i, top_p=0.97, temperature=2.0) for i in range(4)],
    )
    samples = sampler.sample(logits, rows)
    assert [sampled and sampled.token_id for sampled in samples.wait()] == samples.ids.tolist()


# -- greedy, failures, extremes
# -------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.full((3, 49_152), -1.0)
    logits[0, [7, 8, 40_000]] = 2.0
    logits[1, 49_151] = 0.0
    assert sample(logits, [row(temperature=0.0)] * 3) == [
        Sampled(7, None),
        Sampled(49_151, None),
        Sampled(0, None),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_with_nan_or_inf_fails_alone(kind: dict[str, Any], bad: float) -> None:
    logits, rows = normal_logits(4, 1001), [row(seed=i, **kind) for i in range(4)]
    expected = sample(logits, rows)
    poisoned = logits.clone()
    poisoned[1, 500] = bad
    poisoned[3] = bad
    assert sample(poisoned, rows) == [expected[0], None, expected[2], None]


def test_a_row_in_which_nothing_can_be_drawn_fails() -> None:
    assert sample(torch.full((1, 5), -math.inf), [row()]) == [None]
    assert sample(torch.zeros(1, 2), [row(min_tokens=1, stop_token_ids=(0, 1))]) == [None]


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_possible_token_is_drawn(kind: dict[str, Any]) -> None:
    logits = torch.full((3000,), -math.inf)
    logits[1234] = -5.0
    assert [draw_one(logits, row(seed=seed, **kind)) for seed in range(5)] == [1234] * 5


@pytest.mark.parametrize(
    "kind", [{"top_p": 1e-9}, {"top_p": 0.0}, {"temperature": 1e-6}, {"temperature": 1e-300}]
)
def test_a_tiny_top_p_or_temperature_is_greedy(kind: dict[str, Any]) -> None:
    logits = normal_logits(1, 5000)[0]
    assert {draw_one(logits, row(seed=seed, **kind)) for seed in range(10)} == {
        int(logits.argmax())
    }


def test_identical_logits_fill_the_nucleus_from_the_lowest_id() -> None:
    flat = torch.zeros(1000)
    assert {draw_one(flat, row(seed=seed, top_k=3)) for seed in range(60)} == {0, 1, 2}
    assert {draw_one(flat, row(seed=seed, top_p=0.004)) for seed in range(60)} == {0, 1, 2, 3}


def test_negative_zero_equals_zero() -> None:
    assert {draw_one([-0.0, 0.0, -1.0], row(seed=seed, top_k=1)) for seed in range(5)} == {0}


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 10), []) == []


# -- edits, by hand
# -------------------------------------------------------------------------------------------------


def test_repetition_penalty_counts_prompt_and_output_once_each() -> None:
    greedy = {"temperature": 0.0, "repetition_penalty": 2.0}
    assert draw_one([3.0, 2.0, 1.4], row([0, 0], [1], **greedy)) == 0  # 1.5, 1.0, 1.4
    assert draw_one([-1.0, -1.9, -3.0], row([0], [2], **greedy)) == 1  # -2.0, -1.9, -6.0


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = [3.0, 2.6, 2.0]
    assert draw_one(logits, row([0], [], temperature=0.0, presence_penalty=2.0)) == 0
    assert draw_one(logits, row([], [0], temperature=0.0, presence_penalty=0.5)) == 1
    assert draw_one(logits, row([], [0], temperature=0.0, frequency_penalty=0.3)) == 0
    assert draw_one(logits, row([], [0, 0], temperature=0.0, frequency_penalty=0.3)) == 1


def test_bias_cannot_bring_back_a_stop_token_before_min_tokens() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.0,
        "min_tokens": 2,
        "stop_token_ids": (1,),
        "logit_bias": {1: 100.0},
    }
    assert draw_one([0.0, 0.0, 1.0], row([], [2], **fields)) == 2
    assert draw_one([0.0, 0.0, 1.0], row([], [2, 2], **fields)) == 1


# -- the generator and the distribution
# -----------------------------------------------------------------------------

_F = 0xFFFFFFFF
KNOWN_ANSWERS = [  # of the authors' Random123 library, philox4x32, 10 rounds: counter, key, result
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([_F] * 4, [_F] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    k0, k1 = (np.array([word], dtype=np.uint64) for word in key)
    assert [int(word[0]) for word in philox4x32((c0, c1, c2, c3), (k0, k1))] == expected


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
@example(2**63 - 1, 0)
def test_a_uniform_number_depends_on_its_seed_and_position_only(seed: int, position: int) -> None:
    [alone] = uniforms([seed], [position])
    assert 0 <= alone < 1
    assert uniforms([1, seed, 2], [5, position, position])[1] == alone
    assert uniforms([seed], [position + 1])[0] != alone


@pytest.mark.parametrize(
    "kind", [{}, {"top_k": 6}, {"top_p": 0.9}, {"temperature": 0.5}, {"min_p": 0.05}]
)
def test_frequencies_follow_the_distribution(kind: dict[str, Any]) -> None:
    logits, draws = normal_logits(1, 12, seed=4, scale=1.5), 20_000
    rows = [row([], [0] * (i % 4), seed=i // 4, **kind) for i in range(draws)]
    counts = np.zeros(12)
    for start in range(0, draws, 2000):
        for sampled in sample(logits.expand(2000, -1).contiguous(), rows[start : start + 2000]):
            assert sampled is not None
            counts[sampled.token_id] += 1
    expected = expected_distribution(logits[0].double().numpy(), **kind) * draws
    assert (counts[expected == 0] == 0).all()
    used = expected > 0
    chi_square = ((counts - expected)[used] ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def expected_distribution(
    logits: np.ndarray,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> np.ndarray:
    order = np.argsort(-logits)
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    before = np.concatenate(([0.0], np.cumsum(p[order])[:-1]))
    p[order[before >= top_p]] = 0
    p[p < min_p * p.max()] = 0
    return p / p.sum()
