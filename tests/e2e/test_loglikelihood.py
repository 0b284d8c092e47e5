"""Log-likelihoods as evaluation harnesses ask for them equal those of transformers.

The requests and the arithmetic are those of lm-evaluation-harness 0.4.13 with `local-completions`,
written anew: it needs half a gigabyte of packages beside ours. Over the same documents it reports
what this test computes (docs/api.md tells how to run it).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from radixserve.checkpoints.embedded import embedded_model

pytestmark = pytest.mark.model

MODEL = "SmolLM2-135M-Instruct"
DOCUMENTS = Path(__file__).with_name("loglikelihood.jsonl")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Document:
    """Token ids, and what the untouched model says of the continuation."""

    ids: list[int]
    num_context: int
    loglikelihood: float
    is_greedy: bool
    ends: bool  # the likeliest token after it is an end of the text


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    folder = embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for line in DOCUMENTS.read_text().splitlines():
        row = json.loads(line)
        found.append(scored(model, *encoded(tokenizer, row["context"], row["continuation"])))
    return found


def encoded(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], int]:
    """Ids of both together and the number of those of the context; spaces at its end go to the
    continuation, and an empty one is an end of text.
    """
    bare = context.rstrip() if context else context
    ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    if not context:
        return [tokenizer.eos_token_id, *ids], 1
    return ids, len(tokenizer(bare, add_special_tokens=False)["input_ids"])


def scored(model: PreTrainedModel, ids: list[int], num_context: int) -> Document:
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    rows, wanted = logprobs[num_context - 1 : -1], torch.tensor(ids[num_context:])
    return Document(
        ids,
        num_context,
        float(rows[torch.arange(len(wanted)), wanted].double().sum()),
        bool((rows.argmax(-1) == wanted).all()),
        int(logprobs[-1].argmax()) == model.config.eos_token_id,
    )


def test_the_documents_hold_the_hard_cases(documents: list[Document]) -> None:
    assert sum(document.ends and document.is_greedy for document in documents) >= 3
    assert any(not document.is_greedy for document in documents)


@pytest.mark.parametrize(("batch", "max_tokens"), [(4, 1), (1, 0)])
def test_log_likelihoods_equal_those_of_transformers(
    client: openai.OpenAI, documents: list[Document], batch: int, max_tokens: int
) -> None:
    for first in range(0, len(documents), batch):
        some = documents[first : first + batch]
        answer = client.completions.create(
            model=MODEL,
            prompt=[document.ids for document in some],
            temperature=0,
            max_tokens=max_tokens,
            logprobs=1,
            seed=1234,
            echo=True,
        )
        for document, choice in zip(some, answer.choices, strict=True):
            check(document, choice, max_tokens)


def check(document: Document, choice: Any, max_tokens: int) -> None:
    """The sum over the continuation: what is left of the entries without the generated token's."""
    found = choice.logprobs
    assert len(found.token_logprobs) == len(document.ids) + max_tokens
    last = len(found.token_logprobs) - max_tokens
    logprobs = found.token_logprobs[document.num_context : last]
    tops = found.top_logprobs[document.num_context : last]
    assert abs(sum(logprobs) - document.loglikelihood) < TOLERANCE
    greedy = all(each == max(top.values()) for each, top in zip(logprobs, tops, strict=True))
    assert greedy == document.is_greedy
