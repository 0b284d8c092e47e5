"""Are simple questions answered right, and do the answers end, with a server's defaults?

    python benchmarks/bench_defaults.py --url http://127.0.0.1:8000 [--rounds 1] [--verbose]
        [--set temperature=0 repetition_penalty=1.05 ...]

Asks 20 questions as a chat client does that names no sampling parameter; `--set` names some, to
compare candidates for the defaults. An answer is right if one of the expected words is in it, and
ended if its finish reason is "stop". Prints both counts, the generated tokens (median and most) and
the time of the slowest answer. Each round asks the same questions again; without a greedy default
every round draws anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

QUESTIONS: dict[str, tuple[str, ...]] = {
    "What is the capital of France?": ("Paris",),
    "What is the capital of Italy?": ("Rome",),
    "What is the capital of Japan?": ("Tokyo",),
    "What is the capital of Germany?": ("Berlin",),
    "What is 2 + 2?": ("4", "four"),
    "How many days are in a week?": ("seven", "7"),
    "How many months are in a year?": ("12", "twelve"),
    "What color is the sky on a clear day?": ("blue",),
    "What is the largest planet in the solar system?": ("Jupiter",),
    "Which planet do we live on?": ("Earth",),
    "What is the chemical formula of water?": ("H2O", "H₂O"),
    "What is the opposite of hot?": ("cold",),
    "Who wrote Romeo and Juliet?": ("Shakespeare",),
    "What do bees make?": ("honey",),
    "At what temperature in degrees Celsius does water boil?": ("100",),
    "Which language is spoken in Spain?": ("Spanish",),
    "Which ocean lies between Europe and America?": ("Atlantic",),
    "Name a primary color.": ("red", "blue", "yellow"),
    "What gas do plants take in from the air?": ("carbon dioxide", "CO2"),
    "Say hello in one short sentence.": ("hello", "hi"),
}


@dataclass(frozen=True)
class Outcome:
    """One question's answer."""

    question: str
    text: str
    finish_reason: str
    num_tokens: int
    seconds: float

    @property
    def right(self) -> bool:
        return any(word.lower() in self.text.lower() for word in QUESTIONS[self.question])

    @property
    def ended(self) -> bool:
        return self.finish_reason == "stop"


def ask(url: str, question: str, fields: dict[str, Any]) -> Outcome:
    """One chat completion without a system prompt."""
    body = {"messages": [{"role": "user", "content": question}], **fields}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    started = time.monotonic()
    with urllib.request.urlopen(request, timeout=600) as response:
        answer = json.load(response)
    [choice] = answer["choices"]
    num_tokens = answer["usage"]["completion_tokens"]
    text, seconds = choice["message"]["content"], time.monotonic() - started
    return Outcome(question, text, choice["finish_reason"], num_tokens, seconds)


def first_model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as response:
        return str(json.load(response)["data"][0]["id"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--verbose", action="store_true", help="print every answer")
    args = parser.parse_args()
    pairs = (each.partition("=") for each in args.set)
    fields = {"model": first_model(args.url)} | {key: json.loads(value) for key, _, value in pairs}
    outcomes = [ask(args.url, each, fields) for _ in range(args.rounds) for each in QUESTIONS]
    for each in outcomes:
        if args.verbose or not (each.right and each.ended):
            print(f"{each.finish_reason:6} {'right' if each.right else 'WRONG'} {each.question}")
            print(f"       {each.text[:200]!r}")
    lengths = [each.num_tokens for each in outcomes]
    print(
        f"{' '.join(args.set) or 'defaults'}: {sum(each.right for each in outcomes)} right, "
        f"{sum(each.ended for each in outcomes)} ended, of {len(outcomes)}; tokens: median "
        f"{statistics.median(lengths):g}, most {max(lengths)}; slowest answer "
        f"{max(each.seconds for each in outcomes):.1f} s"
    )


if __name__ == "__main__":
    main()
