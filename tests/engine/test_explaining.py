"""Why a prompt is not found: each cause, for questions and for the counts of real requests."""

from __future__ import annotations

import pytest

from radixserve.engine import recent
from radixserve.engine.counters import LOSS_TOKENS
from radixserve.engine.recent import MOST_PROMPTS, Recent, Seen
from radixserve.prefix import Prefix
from radixserve.questions import Asked, Drop, Explain, Explanation
from radixserve.request import Request
from tests.engine.harness import Harness, request

LONG = [1 + i % 50 for i in range(200)]


@pytest.fixture
def harness() -> Harness:
    return Harness(num_slots=600, ahead=False)


def of_session(name: str, prompt: list[int], session: str, namespace: str = "public") -> Request:
    plain = request(name, prompt, 1)
    return Request(
        id=name,
        prompt_ids=prompt,
        sampling=plain.sampling,
        session=session,
        namespace=namespace,
    )


def told(harness: Harness, tokens: list[int], **more: object) -> Explanation:
    question = Explain(**{"namespace": "public", "tokens": tokens, **more})  # type: ignore[arg-type]
    before = [(id(n), n.last_use, n.hits) for n in harness.cache.tree.nodes()]
    answer = harness.answer_to(question)
    assert [(id(n), n.last_use, n.hits) for n in harness.cache.tree.nodes()] == before, "not dry"
    assert isinstance(answer, Explanation)
    assert sum(answer.lost.values()) + sum(answer.matched.values()) == len(tokens) - 1
    return answer


def counted(harness: Harness) -> dict[str, float]:
    numbers = harness.core.scheduler.numbers()
    return {key[1]: count for key, count in numbers.items() if key[0] == LOSS_TOKENS.name and count}


def run(harness: Harness, *requests: Request) -> None:
    for each in requests:
        harness.submit(each)
        harness.run()


def test_a_prompt_that_nobody_has_asked(harness: Harness) -> None:
    assert told(harness, LONG).lost == {"never_seen": 199}
    run(harness, request("a", LONG, 1))
    assert counted(harness) == {"never_seen": 199}


def test_a_hit(harness: Harness) -> None:
    run(harness, request("a", LONG, 1), request("b", LONG, 1))
    assert told(harness, LONG).matched == {"device": 199}
    assert counted(harness) == {"never_seen": 199}


def test_a_change_in_the_middle_of_a_session(harness: Harness) -> None:
    changed = [*LONG[:100], 77, *LONG[101:], 5, 6]
    run(harness, of_session("a", LONG, "s"))
    answer = told(harness, changed, session="s")
    assert answer.matched == {"device": 100}
    assert answer.lost == {"prefix_changed": 100, "never_seen": 1}
    assert answer.differs_at == 100
    assert (answer.theirs_from, answer.theirs[:9]) == (92, LONG[92:101])
    assert answer.compared is not None
    assert (answer.compared.kind, answer.compared.shared) == ("session", 100)
    run(harness, of_session("b", changed, "s"))
    assert counted(harness) == {"never_seen": 200, "prefix_changed": 100}


PROMPT = [  # 300 tokens: a system prompt, tools, a question
    *range(100, 220),
    *range(300, 350),
    *range(400, 450),
    *range(500, 580),
]
CHANGED = {  # prompts, with how many of their tokens would have been found without the change
    "a date in front": ([*PROMPT[:5], 7, 8, *PROMPT[6:]], 5, 300),
    "an id of the request behind some text": ([*PROMPT[:90], 7, 8, 9, *PROMPT[92:]], 90, 300),
    "tools in another order": ([*PROMPT[:120], *PROMPT[170:220], *PROMPT[120:170], *PROMPT[220:]],
                               120, 299),
    "keys in another order": ([*PROMPT[:130], 132, 133, 130, 131, *PROMPT[134:]], 130, 299),
    "a word in the middle of the system prompt": ([*PROMPT[:60], 7, *PROMPT[61:]], 60, 299),
    "a date in front and another question": (
        [*PROMPT[:5], 7, *PROMPT[6:220], *range(600, 700)], 5, 220),
}  # fmt: skip
UNLIKE = {
    "a prompt of another application behind the same template": [*PROMPT[:5], *range(700, 1100)],
    "a short prompt in the same template": [*PROMPT[:5], *range(700, 720), *PROMPT[-6:]],
    "another question behind the same system prompt": [*PROMPT[:220], *range(700, 780)],
    "one sentence in common, far behind": [*PROMPT[:5], *range(700, 900), *PROMPT[-30:]],
}


@pytest.mark.parametrize("is_flushed", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_a_change_in_front_of_what_stays_the_same(
    harness: Harness, name: str, is_flushed: bool
) -> None:
    prompt, shared, end = CHANGED[name]
    run(harness, request("a", PROMPT, 1))
    if is_flushed:
        harness.answer_to(Drop())
    answer = told(harness, prompt)
    matched = sum(answer.matched.values())
    assert answer.lost.get("prefix_changed", 0) == end - shared
    assert answer.lost.get("dropped", 0) == shared - matched
    assert answer.differs_at == shared
    before = counted(harness)
    run(harness, request("b", prompt, 1))
    after = counted(harness)
    assert {
        cause: n - before.get(cause, 0) for cause, n in after.items() if n != before.get(cause)
    } == answer.lost


@pytest.mark.parametrize("name", UNLIKE)
def test_a_prompt_that_only_begins_alike_was_never_seen(harness: Harness, name: str) -> None:
    run(harness, request("a", PROMPT, 1))
    answer = told(harness, UNLIKE[name])
    assert answer.lost.keys() == {"never_seen"}


def test_without_a_session_the_recent_prompt_that_shares_most_is_compared(
    harness: Harness,
) -> None:
    run(harness, request("a", LONG, 1), request("b", [*LONG[:80], *[60] * 40], 1))
    answer = told(harness, [*LONG[:150], 77, 78])
    assert answer.compared is not None
    assert (answer.compared.kind, answer.compared.shared) == ("recent", 150)
    assert answer.lost == {"never_seen": 1}


def test_a_change_in_an_earlier_answer_is_found_in_the_tree(harness: Harness) -> None:
    run(harness, request("a", LONG, 20))
    answer = [*LONG, *harness.tokens("a")]
    changed = [*answer[:210], 77, *answer[211:], 5, 6]
    told_now = told(harness, changed)
    assert told_now.compared is not None
    assert (told_now.compared.kind, told_now.differs_at) == ("stored", 210)
    assert told_now.theirs[210 - told_now.theirs_from] == answer[210]


def test_reasoning_that_a_template_drops_from_an_earlier_answer_is_a_change(
    harness: Harness,
) -> None:
    run(harness, request("a", PROMPT, 100))
    reasoning, answer = harness.tokens("a")[:40], harness.tokens("a")[40:]
    assert reasoning[0] != answer[0]
    following = [*PROMPT, *answer, 5, 6, 7]
    lost = told(harness, following).lost
    assert lost == {"prefix_changed": 59, "never_seen": 3}
    before = counted(harness)
    run(harness, request("b", following, 1))
    assert counted(harness)["prefix_changed"] == before.get("prefix_changed", 0) + 59


def test_what_was_evicted_is_told_with_time_and_pressure(harness: Harness) -> None:
    run(harness, request("a", LONG, 1))
    harness.cache.slots.evict(70)
    answer = told(harness, LONG)
    assert answer.lost == {"evicted": 199 - answer.matched["device"]}
    assert answer.gone_seconds is not None
    assert answer.gone_for == 70
    assert answer.differs_at is None


def test_what_was_dropped(harness: Harness) -> None:
    run(harness, request("a", LONG, 1))
    harness.core.ask(Asked(2, Drop()))
    while not harness.core.answers():
        pass
    answer = told(harness, LONG)
    assert answer.lost == {"dropped": 199}
    assert answer.gone_for is None


def test_a_short_prompt_is_known_by_the_place_where_it_went(harness: Harness) -> None:
    run(harness, request("a", LONG[:40], 1))
    harness.cache.slots.evict(600)
    assert told(harness, LONG[:40]).lost == {"evicted": 39}


def test_another_namespace_the_cache_off_and_a_prompt_too_short(harness: Harness) -> None:
    run(harness, of_session("a", LONG, "", namespace="salt:1"))
    assert told(harness, LONG).lost == {"other_namespace": 199}
    assert told(harness, LONG, reads_cache=False).lost == {"cache_off": 199}
    assert told(harness, LONG[:9]).lost == {"too_short": 8}


def test_a_branch_of_the_tree_is_shown_where_no_prompt_is_remembered(harness: Harness) -> None:
    run(harness, request("a", LONG, 1))
    harness.core.scheduler.recent = Recent()
    answer = told(harness, [*LONG[:30], 99, 99])
    assert answer.compared is not None
    assert (answer.compared.kind, answer.compared.shared) == ("stored", 30)
    assert answer.theirs[:9] == LONG[22:31]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST_BYTES", 64 * 400)
    monkeypatch.setattr(recent, "MOST_PLACES", 10)
    memory, harness = Recent(), Harness(num_slots=4000, ahead=False)
    for i in range(300):
        memory.note(Seen.now(Prefix.of("public", [i, *range(99)]), str(i)))
    assert memory._num_bytes <= 64 * 400
    assert len(memory._by_key) <= 64
    assert len(memory._by_key_anywhere) <= 64
    assert {id(each) for each in memory._by_shingle.values()} <= set(memory._prompts)
    assert len(memory._of_session) == len(memory._prompts) == 64
    run(harness, *(request(str(i), [60 + i, *LONG[:20]], 1) for i in range(30)))
    harness.cache.slots.evict(600)
    assert len(harness.core.scheduler.recent._places) == 10
    assert MOST_PROMPTS > 0
