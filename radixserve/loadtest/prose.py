"""Generates English-like text from a seed: the same on every machine, different for every key."""

from __future__ import annotations

import random

_NOUNS = (  # noqa: SIM905 - a list of literals would take a page
    "river harbour engineer market garden window teacher bridge letter museum forest island "
    "captain village library "
    "machine kitchen mountain station journal valley farmer doctor painter storm lantern "
    "orchard railway castle school"
).split()
_VERBS = (  # noqa: SIM905
    "follows watches repairs describes carries opens measures paints crosses remembers "
    "builds studies visits answers "
    "guards collects finishes improves explains protects"
).split()
_ADJECTIVES = (  # noqa: SIM905
    "quiet narrow ancient bright careful distant early gentle heavy honest large modern "
    "northern patient simple silver "
    "steady warm wooden young"
).split()
_LINKS = "near behind above beside across beyond inside under after before".split()  # noqa: SIM905


def prose(words: int, *key: object) -> str:
    """Sentences of `words` words in all, determined by `key`."""
    rng = random.Random(
        "/".join(map(str, key))
    )  # a string seed gives the same numbers in every Python
    sentences: list[str] = []
    count = 0
    while count < words:
        sentence = _sentence(rng)[: words - count]
        count += len(sentence)
        sentences.append(" ".join(sentence).capitalize() + ".")
    return " ".join(sentences)


def _sentence(rng: random.Random) -> list[str]:
    subject = ["the", rng.choice(_ADJECTIVES), rng.choice(_NOUNS), rng.choice(_VERBS)]
    place = [rng.choice(_LINKS), "the", rng.choice(_ADJECTIVES), rng.choice(_NOUNS)]
    return subject + ["the", rng.choice(_NOUNS)] + (place if rng.random() < 0.7 else [])
