from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from radixserve.cache.ghosts import Ghosts, chunk_keys
from radixserve.prefix import Prefix

TOKENS = st.lists(st.integers(0, 1), max_size=9)


def prefix(*token_ids: int) -> Prefix:
    return Prefix.of("public", token_ids)


def test_a_key_stands_for_all_tokens_up_to_the_end_of_its_chunk() -> None:
    whole, shorter = list(chunk_keys(prefix(1, 2, 3, 4, 5), 2)), list(chunk_keys(prefix(1, 2), 2))
    assert len(whole) == 2
    assert whole[:1] == shorter
    assert whole[1] != list(chunk_keys(prefix(9, 2, 3, 4), 2))[1]
    assert whole != list(chunk_keys(Prefix.of("other", [1, 2, 3, 4, 5]), 2))


def test_what_was_evicted_is_found_up_to_the_first_chunk_that_is_not_remembered_and_only_once() -> (
    None
):
    ghosts: Ghosts[str] = Ghosts(2)
    ghosts.add(prefix(1, 2, 3, 4, 5, 6), 4, "evicted")
    assert ghosts.num_tokens == 4
    assert ghosts.take(prefix(1, 2, 3, 4, 7, 8), 2) == ["evicted"]
    assert ghosts.take(prefix(1, 2, 3, 4, 7, 8), 2) == []
    assert ghosts.take(prefix(1, 2, 3, 4, 5, 6), 4) == ["evicted"]


def test_the_end_of_what_was_evicted_first_is_forgotten_first() -> None:
    ghosts: Ghosts[int] = Ghosts(1)
    ghosts.add(prefix(1, 2, 3), 3, 7)
    ghosts.shrink(2)
    assert ghosts.take(prefix(1, 2, 3), 0) == [7, 7]


def test_a_chunk_of_which_only_a_part_went_is_remembered() -> None:
    ghosts: Ghosts[None] = Ghosts(4)
    ghosts.add(prefix(1, 2, 3, 4, 5), 1, None)
    assert ghosts.num_tokens == 0
    ghosts.add(prefix(1, 2, 3, 4), 1, None)
    assert ghosts.num_tokens == 4


@given(
    chunk=st.integers(1, 3),
    most=st.integers(0, 8),
    calls=st.lists(st.tuples(st.booleans(), TOKENS, st.integers(0, 9)), max_size=30),
)
def test_ghosts_are_a_list_of_prefixes(
    chunk: int, most: int, calls: list[tuple[bool, list[int], int]]
) -> None:
    ghosts: Ghosts[int] = Ghosts(chunk)
    model: list[tuple[tuple[int, ...], int]] = []
    for number, (evicts, tokens, split) in enumerate(calls):
        depth = min(split, len(tokens))
        ends = [end for end in range(chunk, len(tokens) + 1, chunk) if end > depth // chunk * chunk]
        if evicts:
            ghosts.add(prefix(*tokens), len(tokens) - depth, number)
            for end in reversed(ends):
                model = [each for each in model if each[0] != tuple(tokens[:end])]
                model.append((tuple(tokens[:end]), number))
            ghosts.shrink(most)
            model = model[max(len(model) - most // chunk, 0) :]
        else:
            expected = []
            for end in ends:
                found = [each for each in model if each[0] == tuple(tokens[:end])]
                if not found:
                    break
                model.remove(found[0])
                expected.append(found[0][1])
            assert ghosts.take(prefix(*tokens), depth) == expected
        assert ghosts.num_tokens == len(model) * chunk
