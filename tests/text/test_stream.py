from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radixserve.text.stream import TextStream
from radixserve.text.tokenizer import Tokenizer

# The fixtures are read-only, so examples may share them.
SHARED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCRIPTS = [
    "Hello, world!\n",
    "naïve café — “quoted”…",
    "Ελληνικά и русский текст",
    "日本語の文章と한국어",
    "हिन्दी में वाक्य ",
    "العربية والعبرية עברית",
    "ไทยไม่มีช่องว่าง",
    "👩‍👩‍👧‍👦🏳️‍🌈🇫🇷 e\u0301",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀𓂀 \U0010fffd",
    "\x00\x07 \ufffd \u200b\ufeff",
]
TEXTS = st.lists(st.sampled_from(SCRIPTS) | st.text(max_size=12), max_size=5).map("".join)
CUTS = st.lists(st.integers(0, 60), max_size=8)


def parts(ids: list[int], cuts: list[int]) -> list[list[int]]:
    points = sorted([0, *(min(cut, len(ids)) for cut in cuts), len(ids)])
    return [ids[start:end] for start, end in pairwise(points)]


def run(stream: TextStream, pushes: list[list[int]]) -> str:
    return "".join([stream.push(ids) for ids in pushes]) + stream.finish()


def cut_at_stop(text: str, stops: list[str]) -> str:
    """`text` before the stop string that is complete first; the longest of those."""
    for end in range(1, len(text) + 1):
        if matches := [stop for stop in stops if text.endswith(stop, 0, end)]:
            return text[: end - max(map(len, matches))]
    return text


@SHARED
@given(data=st.data())
def test_random_tokens_stream_to_what_the_byte_level_decoder_gives(
    smollm2: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, smollm2.vocab_size + 2), max_size=60))
    expected = smollm2._backend.decode(
        [i for i in ids if i < smollm2.vocab_size], skip_special_tokens=True
    )
    assert run(smollm2.stream(), parts(ids, data.draw(CUTS))) == expected
    assert smollm2.decode(ids) == expected


@SHARED
@given(data=st.data())
def test_random_bytes_stream_to_what_the_byte_level_decoder_gives(
    smollm2: Tokenizer, data: st.DataObject
) -> None:
    """Tokens of single bytes and pieces of characters, so that most text is broken UTF-8."""
    fragments = [i for i in range(smollm2.vocab_size) if "\ufffd" in smollm2.token_text(i)]
    assert len(fragments) > 128
    ids = data.draw(st.lists(st.sampled_from(fragments), max_size=40))
    expected = smollm2._backend.decode(ids, skip_special_tokens=True)
    assert run(smollm2.stream(), parts(ids, data.draw(CUTS))) == expected


@SHARED
@given(text=TEXTS, cuts=CUTS)
def test_text_of_any_script_streams_to_what_the_decoder_gives(
    any_tokenizer: Tokenizer, text: str, cuts: list[int]
) -> None:
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    expected = any_tokenizer._backend.decode(ids, skip_special_tokens=True)
    assert run(any_tokenizer.stream(), parts(ids, cuts)) == expected
    assert any_tokenizer.decode(ids) == expected


@SHARED
@given(text=TEXTS)
def test_byte_fallback_brings_every_text_back(byte_fallback: Tokenizer, text: str) -> None:
    assert byte_fallback.decode(byte_fallback.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("text", SCRIPTS)
def test_no_push_ends_inside_a_character(smollm2: Tokenizer, text: str) -> None:
    stream, sent = smollm2.stream(), ""
    for token_id in smollm2.encode(text, add_special_tokens=False):
        sent += stream.push([token_id])
        assert text.startswith(sent)
    assert sent + stream.finish() == text


@SHARED
@given(data=st.data(), cuts=CUTS)
def test_stop_strings_cut_the_text_the_same_for_every_split(
    any_tokenizer: Tokenizer, data: st.DataObject, cuts: list[int]
) -> None:
    text = data.draw(TEXTS)
    stop = st.text("a e,\u200d\ufffdн", min_size=1, max_size=3)
    if text:
        stop |= st.tuples(st.integers(0, len(text) - 1), st.integers(1, 5)).map(
            lambda at: text[at[0] :][: at[1]]
        )
    stops = data.draw(st.lists(stop, min_size=1, max_size=4))
    ids = any_tokenizer.encode(text, add_special_tokens=False)
    whole = any_tokenizer.decode(ids)
    stream = any_tokenizer.stream(stops)
    assert run(stream, parts(ids, cuts)) == cut_at_stop(whole, stops)
    assert (stream.stopped is not None) == any(stop in whole for stop in stops)


@SHARED
@given(data=st.data())
def test_the_token_that_completes_the_stop_string_is_the_last_one_counted(
    smollm2: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(3, 4000), min_size=1, max_size=30))
    stops = ["e", " t"]
    stream = smollm2.stream(stops)
    run(stream, [ids])
    lengths = [
        n for n in range(1, len(ids) + 1) if any(stop in smollm2.decode(ids[:n]) for stop in stops)
    ]
    assert stream.num_tokens == (lengths[0] if lengths else len(ids))
    assert len(stream.offsets) == stream.num_tokens


def test_text_that_may_become_a_stop_string_is_held_back_and_then_sent(smollm2: Tokenizer) -> None:
    stream = smollm2.stream(["\n\nUser:"])
    ids = [
        smollm2.encode(part, add_special_tokens=False) for part in ("Hi", "\n\n", "User", " name")
    ]
    assert [stream.push(part) for part in ids] == ["Hi", "", "", "\n\nUser name"]
    assert stream.finish() == ""
    assert stream.stopped is None


def test_held_text_is_returned_at_the_end(smollm2: Tokenizer) -> None:
    stream = smollm2.stream(["stopping"])
    assert stream.push(smollm2.encode("please stop", add_special_tokens=False)) == "please "
    assert stream.finish() == "stop"
    assert stream.finish() == ""


def test_nothing_follows_a_stop_string(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("count one two three", add_special_tokens=False)
    stream = smollm2.stream([" two"])
    assert stream.push(ids) == "count one"
    assert (stream.stopped, stream.num_tokens) == (" two", 3)
    assert stream.push(ids) == ""
    assert stream.finish() == ""
    assert stream.num_tokens == 3


def test_an_unfinished_character_at_the_end_becomes_one_replacement_character(
    smollm2: Tokenizer,
) -> None:
    ids = smollm2.encode("ok 🦄", add_special_tokens=False)
    stream = smollm2.stream()
    assert stream.push(ids[:-1]) == "ok "
    assert stream.finish() == "\ufffd"


def test_a_replacement_character_can_be_a_stop_string(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("ok 🦄", add_special_tokens=False)
    stream = smollm2.stream(["\ufffd"])
    assert stream.push(ids[:-1]) + stream.finish() == "ok "
    assert stream.stopped == "\ufffd"


def test_stop_strings_within_the_first_min_tokens_are_ordinary_text(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("one two one two", add_special_tokens=False)
    assert len(ids) == 4
    stream = smollm2.stream([" two"], min_tokens=2)
    assert [stream.push([token_id]) for token_id in ids] == ["one", " two", " one", ""]
    assert (stream.stopped, stream.num_tokens) == (" two", 4)


def test_special_tokens_add_no_text(smollm2: Tokenizer) -> None:
    a, b = (smollm2.encode(text, add_special_tokens=False) for text in "ab")
    ids = [1, *a, 2, *b]
    assert smollm2.stream().push(ids) == "ab"


def test_special_tokens_that_are_shown_are_spelled_out(
    smollm2: Tokenizer, byte_fallback: Tokenizer
) -> None:
    a, b = (smollm2.encode(text, add_special_tokens=False) for text in "ab")
    ids = [1, *a, 2, *b]
    assert run(smollm2.stream(shown=frozenset([2])), [ids]) == "a<|im_end|>b"
    assert run(smollm2.stream(skip_special_tokens=False), [ids]) == "<|im_start|>a<|im_end|>b"
    ids = byte_fallback.encode("quick", add_special_tokens=False)
    assert run(byte_fallback.stream(shown=frozenset([1])), [[1, *ids, 2]]) == "<s> quick"
    assert run(byte_fallback.stream(shown=frozenset([2])), [[1, *ids, 2]]) == "quick</s>"


def test_a_stop_string_may_span_tokens_that_are_shown(smollm2: Tokenizer) -> None:
    [a] = smollm2.encode("a", add_special_tokens=False)
    stream = smollm2.stream(["a<|im_end|>"], shown=frozenset([2]))
    assert [stream.push([each]) for each in (a, 2, a)] == ["", "", ""]
    assert (stream.stopped, stream.num_tokens) == ("a<|im_end|>", 2)


def test_ids_without_a_token_add_no_text_even_where_all_are_shown(smollm2: Tokenizer) -> None:
    assert run(smollm2.stream(skip_special_tokens=False), [[10**9, -1]]) == ""


def test_the_stop_string_may_be_kept_and_nothing_after_it(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("one two three", add_special_tokens=False)
    for stop in (" two", "wo", "two thr"):
        stream = smollm2.stream([stop], include_stop=True)
        text = "".join(stream.push([token_id]) for token_id in ids) + stream.finish()
        assert "one two three".startswith(text)
        assert text.endswith(stop)
        assert stream.stopped == stop
    assert run(smollm2.stream(["nothing"], include_stop=True), [ids]) == "one two three"


def test_a_marker_is_looked_up_among_the_added_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.token_id("<|im_end|>") == 2
    assert smollm2.token_id("<tool_call>") is None
    assert smollm2.token_id("The") is None


def test_a_special_token_inside_a_character_does_not_break_it(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("🦄", add_special_tokens=False)
    assert len(ids) > 1
    assert smollm2.stream().push([ids[0], 2, *ids[1:]]) == "🦄"


def test_offsets_are_where_each_token_begins(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("The capital é🦄!", add_special_tokens=False)
    stream = smollm2.stream()
    text = stream.push(ids)
    assert text == "The capital é🦄!"
    starts = [len(smollm2.decode(ids[:n]).rstrip("\ufffd")) for n in range(len(ids))]
    assert stream.offsets == starts
    assert stream.offsets[:3] == [0, 3, 11]


def test_a_continuation_keeps_the_space_that_a_text_of_its_own_loses(
    byte_fallback: Tokenizer,
) -> None:
    tokenizer = byte_fallback
    ids = tokenizer.encode("quick dog", add_special_tokens=False)
    assert run(tokenizer.stream(), [ids]) == "quick dog"
    assert run(tokenizer.stream(continues=True), [ids]) == " quick dog"
    assert run(tokenizer.stream(), [[1, *ids]]) == "quick dog"


def test_byte_tokens_are_sent_as_soon_as_a_character_is_whole(byte_fallback: Tokenizer) -> None:
    """The library's decoder spoils the whole run of byte tokens when its end is not UTF-8; a stream
    cannot.
    """
    tokenizer = byte_fallback
    tokens = [3 + byte for byte in "€".encode()]
    assert [tokenizer.token_bytes(i) for i in tokens] == [b"\xe2", b"\x82", b"\xac"]
    stream = tokenizer.stream()
    assert [stream.push([i]) for i in [*tokens, tokens[0]]] == ["", "", "€", ""]
    assert stream.finish() == "\ufffd"
    assert tokenizer.decode([*tokens, tokens[0]]) == "€\ufffd"
