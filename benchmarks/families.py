"""Which models are served, and how: tries a tiny random model of every decoder-only class that the
installed transformers has, and writes the table of docs/models.md.

    python benchmarks/families.py                       # all, a few minutes
    python benchmarks/families.py gemma2 "qwen3_moe"    # these only; writes nothing
    python benchmarks/families.py --keep gemma2         # these only; writes their rows anew

Each model is saved and loaded as a user's would be, load check included. If it is served, then

- its greedy tokens and their log-probabilities are compared with those of `transformers.generate`;
- its logits are computed in one prefill and token by token, over scattered slots;
- requests whose prompts branch off each other run alone, together, warm from the tree, with so few
  slots that the cache evicts and requests are preempted, and a step ahead: all answers must have
  the same bits.

They are tried in processes with a deadline for each model, so that nothing that one of them does
stops the others.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from families_table import Counts, Outcome, Results, read_results, write_results
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parent.parent))

from radixserve.errors import ModelRefused
from radixserve.model.load import load_model
from radixserve.model.loaded import LoadedModel
from radixserve.request import Request
from tests.e2e.answers import Setup, alone, greedy, run, trace
from tests.tiny import CPU, chunks_of, runner_of
from tests.tiny_families import NAMES, family_model

GENERATE = Path(__file__).parent.parent / "docs" / "generate.py"
PROMPTS = (1, 21, 70)  # tokens
NUM_TOKENS = 12
NUM_CUT = 100  # tokens of the prompt that is cut anywhere
SECONDS = 180.0  # for one model
WORKERS = os.cpu_count() or 1


def attempt(name: str) -> Outcome:
    """Try one tiny model."""
    saved = family_model(name)
    outcome = Outcome(name=name, kind=type(saved).__name__)
    with tempfile.TemporaryDirectory(prefix="radixserve-families-") as folder:
        saved.save_pretrained(folder)
        try:
            loaded = load_model(folder, CPU, torch.float32)
        except ModelRefused as error:
            outcome.refusal = str(error)
            return outcome
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outcome.path = "fast" if loaded.decoder is not None else "generic"
    outcome.inexact_reason = loaded.inexact_reason or ""
    compare(model, loaded, outcome)
    outcome.exact = loaded.exact and cuts_change_nothing(loaded) and company_changes_nothing(loaded)
    return outcome


def compare(model: PreTrainedModel, loaded: LoadedModel, outcome: Outcome) -> None:
    """Compare greedy answers with those of transformers."""
    generator = np.random.default_rng(1)
    prompts = [generator.integers(2, loaded.vocab_size, count).tolist() for count in PROMPTS]
    requests = [
        Request(id=str(index), prompt_ids=prompt, sampling=greedy(NUM_TOKENS))
        for index, prompt in enumerate(prompts)
    ]
    answers = alone(loaded, requests)
    outcome.tokens_equal = True
    for request in requests:
        answer = answers[request.id]
        tokens, logprobs = generated(model, request.prompt_ids)
        outcome.tokens_equal &= answer.token_ids == tokens
        for row, ours in zip(logprobs, answer.logprobs, strict=True):
            pairs = [(ours.token_id, ours.logprob), *ours.top]
            most = max(abs(row[token] - logprob) for token, logprob in pairs)
            outcome.difference = max(outcome.difference, float(most))


def generated(model: PreTrainedModel, prompt: Sequence[int]) -> tuple[list[int], torch.Tensor]:
    """The greedy tokens of transformers, and their log-probabilities [tokens, vocab_size]."""
    model.generation_config = GenerationConfig(  # no token ends the answer
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids))
    logits = torch.cat(found.logits).double()
    return found.sequences[0, len(prompt) :].tolist(), logits.log_softmax(-1)


@torch.inference_mode()
def cuts_change_nothing(loaded: LoadedModel) -> bool:
    """Whether a prompt has the same logits in one prefill and token by token, elsewhere."""
    generator = np.random.default_rng(2)
    tokens = generator.integers(0, loaded.vocab_size, NUM_CUT).tolist()
    runner = runner_of(loaded, NUM_CUT)
    logits = [
        torch.cat([runner.forward([chunk]).clone() for chunk in chunks_of(tokens, slots, cuts)])
        for slots, cuts in (
            (range(NUM_CUT), ()),
            (generator.permutation(NUM_CUT).tolist(), range(1, NUM_CUT)),
            (generator.permutation(NUM_CUT).tolist(), (7, 8, 40, 41)),
        )
    ]
    return all(torch.equal(logits[0], other) for other in logits[1:])


def company_changes_nothing(loaded: LoadedModel) -> bool:
    """Whether answers have the same bits alone and in company, cold, warm and after eviction."""
    requests = trace(random.Random(3), loaded.vocab_size, count=8, length=60)
    expected = alone(loaded, requests)
    roomy = Setup(max_running=8, max_step_tokens=150).engine(loaded)
    tight = Setup(num_slots=250, max_running=5, max_step_tokens=48)
    ahead = Setup(num_slots=250, max_running=5, max_step_tokens=90, ahead=True)
    return (
        run(roomy, requests, gap=1) == expected
        and run(roomy, requests[::-1]) == expected
        and run(tight.engine(loaded), requests) == expected
        and run(ahead.engine(loaded), requests, gap=2) == expected
    )


# The processes.


class Worker:
    """A process that tries one model after the other. It is replaced if it dies or hangs."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve_attempts, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def attempt(self, name: str) -> Outcome:
        """`attempt` in the process, within the deadline."""
        try:
            self._pipe.send(name)
            if self._pipe.poll(SECONDS):
                outcome: Outcome = self._pipe.recv()
                return outcome
            error = f"no end within {SECONDS:.0f} s"
        except (EOFError, OSError):
            self._process.join()
            error = f"the process ended with {self._process.exitcode}"
        self.close()
        self._start()
        return Outcome(name=name, kind="?", error=error)

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def serve_attempts(pipe: Connection) -> None:
    """What a worker's process does."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    while True:
        pipe.send(attempt_without_exception(pipe.recv()))


def attempt_without_exception(name: str) -> Outcome:
    """`attempt`; an exception that is no refusal becomes an outcome, too."""
    try:
        return attempt(name)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return Outcome(name=name, kind="?", error=f"{type(error).__name__} at {place}: {error}")


def try_all(names: Sequence[str]) -> list[Outcome]:
    """Try these models, some at a time, and print what became of each."""
    waiting, found = deque(names), dict[str, Outcome]()

    def work() -> None:
        worker = Worker()
        while waiting:
            try:
                name = waiting.popleft()
            except IndexError:  # the other worker took it
                break
            found[name] = worker.attempt(name)
            print(f"{len(found):4}/{len(names)} {name}: {told(found[name])}", flush=True)
        worker.close()

    with ThreadPoolExecutor(WORKERS) as pool:
        for task in [pool.submit(work) for _ in range(min(WORKERS, len(names)))]:
            task.result()
    return [found[name] for name in names]


def told(outcome: Outcome) -> str:
    """One line about an outcome."""
    if not outcome.is_served:
        return f"refused: {outcome.refusal}" if outcome.refusal else f"ERROR: {outcome.error}"
    exact = "exact" if outcome.exact else "not exact"
    equal = "equal" if outcome.is_equal else "OTHER"
    if outcome.exact is False and not outcome.inexact_reason:
        exact = "CLAIMS TO BE EXACT"
    return f"{outcome.path}, {exact}, {equal} ({outcome.difference:.1e}) {outcome.inexact_reason}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="model types (default: all, and write the table)")
    parser.add_argument("--keep", action="store_true", help="write the rows of named models, too")
    args = parser.parse_args()
    versions = {each: version(each) for each in ("transformers", "torch")}
    if args.keep and read_results().versions != versions:
        parser.error("the table is of other versions: try all models")
    outcomes = try_all(args.names or NAMES)
    print(Counts.of(outcomes).sentence())
    if args.keep or not args.names:
        tried = {each.name: each for each in outcomes}
        kept = {each.name: each for each in read_results().outcomes} | tried
        rows = [kept[name] for name in NAMES if name in kept]
        write_results(Results(versions=versions, outcomes=rows))
        subprocess.run([sys.executable, str(GENERATE)], check=True)


if __name__ == "__main__":
    main()
