"""Reads the numbers of a server by HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

from prometheus_client.parser import text_string_to_metric_families

_Samples = dict[str, list[tuple[dict[str, str], float]]]

_SECONDS = 5.0  # for one answer
_MOST_BYTES = 16 << 20  # of one answer
_LEVELS, _NODES = 3, 100  # of the tree


class TopError(Exception):
    """The server is away, refuses, or is none; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the prefix tree."""

    tokens: int  # from the beginning of the prompt to its end
    hits: int  # requests that used it
    age_seconds: float
    leased: bool
    text: str  # with what its prompts begin, and with what the node itself does


@dataclass(frozen=True, slots=True)
class Reading:
    """The metrics page at one moment."""

    at: float  # time.monotonic() seconds
    samples: _Samples = field(default_factory=dict)

    def sum(self, name: str, **labels: str) -> float:
        """All series of `name` that have these labels, added up; 0 if there are none."""
        return sum(
            value
            for found, value in self.samples.get(name, ())
            if all(found.get(label) == text for label, text in labels.items())
        )

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The values of `name` by one of its labels, of the series that have `labels`."""
        sums: dict[str, float] = {}
        for found, value in self.samples.get(name, ()):
            if all(found.get(each) == text for each, text in labels.items()):
                key = found.get(label, "")
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def label(self, name: str, label: str) -> str:
        """The text of a label in the first series of `name`."""
        series = self.samples.get(name)
        return series[0][0].get(label, "") if series else ""


class Source:
    """A server at `url`, such as http://127.0.0.1:8000; a trailing /v1 is accepted. `model` is the
    one that is watched, which may be left out where there is one only.
    """

    def __init__(self, url: str, key: str | None, model: str | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
        except ValueError as error:
            raise TopError(f"{url!r} is not an http:// or https:// address") from error
        if key is not None and not (key.isascii() and key.isprintable()):
            raise TopError("the key has characters that no key has")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TopError(f"{url!r} is not an http:// or https:// address")
        self.url = parts.geturl().rstrip("/").removesuffix("/v1")
        self._asked = model
        self._model: str | None = None  # of several
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def read(self) -> Reading:
        """The numbers now. Raises TopError."""
        page = self._get("/metrics").decode("utf-8", "replace")
        try:
            reading = Reading(time.monotonic(), self._of_model(_samples(page)))
        except ValueError as error:
            raise TopError(f"{self.url}/metrics is no page of metrics") from error
        if "radixserve_build_info" not in reading.samples:
            raise TopError(f"{self.url} is no radixserve")
        return reading

    def prefixes(self) -> list[Node]:
        """The nodes of the tree with the most hits. Raises TopError."""
        model = "" if self._model is None else f"&model={quote(self._model, safe='')}"
        body = self._get(f"/cache/tree?depth={_LEVELS}&nodes={_NODES}{model}")
        try:
            nodes = _nodes(json.loads(body)["nodes"])
        except (ValueError, LookupError, TypeError) as error:
            raise TopError(f"{self.url}/cache/tree is not understood") from error
        real = [each for each in nodes if each.tokens]
        return sorted(real, key=lambda node: (-node.hits, -node.tokens))

    def _of_model(self, samples: _Samples) -> _Samples:
        """The samples of the model that is watched. Raises TopError if it is not clear which."""
        info = samples.get("radixserve_model_info", ())
        names = sorted({labels["model"] for labels, _ in info if "model" in labels})
        self._model = self._asked if len(names) > 1 else None
        if len(names) < 2:
            return samples
        if self._model is None:
            raise TopError(f"{self.url} serves {', '.join(names)}: choose one with --model")
        if self._model not in names:
            raise TopError(f"{self.url} serves {', '.join(names)}, not {self._model}")
        return {
            name: [each for each in found if each[0].get("model", self._model) == self._model]
            for name, found in samples.items()
        }

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                return bytes(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise TopError(_refusal(self.url, error)) from error
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: of a host's name
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise TopError(f"no server answers at {self.url}: {reason}") from error


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"{url} wants a valid key: --key KEY, or the variable RADIXSERVE_API_KEY"
    if error.code == 403:
        return f"{url} wants the key of an administrator: --key KEY"
    return f"{url} answers {error.code} {error.reason}"


def _samples(page: str) -> _Samples:
    samples: _Samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def _nodes(listed: list[dict[str, Any]]) -> list[Node]:
    """The nodes of the tree's JSON, in which parents stand before their children."""
    begins: dict[Any, str] = {}  # with what the prompts of a node begin, by its id
    nodes = []
    for each in listed:
        text = str(each.get("text", ""))
        begin = begins.get(each.get("parent"), "") or text
        begins[each.get("id")] = begin
        nodes.append(_node(each, text if begin == text else f"{begin} … {text}"))
    return nodes


def _node(node: dict[str, Any], text: str) -> Node:
    return Node(
        tokens=int(node["depth"]) + int(node["tokens"]),
        hits=int(node.get("hits", 0)),
        age_seconds=float(node.get("age_seconds", 0.0)),
        leased=bool(node.get("leased", False)),
        text=text,
    )


class History:
    """The readings of the last minute, oldest first. Increases are those from the first reading to
    the last one. With one reading, and always with `since_start`, they are those since the server's
    start.
    """

    def __init__(self, seconds: float = 60.0, *, since_start: bool = False) -> None:
        self._seconds = seconds
        self._since_start = since_start
        self.readings: list[Reading] = []

    def add(self, reading: Reading) -> None:
        """A reading with smaller totals is that of another process, with which all begins again."""
        name = "radixserve_steps_total"
        if self.readings and reading.sum(name) < self.readings[-1].sum(name):
            self.readings.clear()
        self.readings.append(reading)
        while reading.at - self.readings[0].at > self._seconds:
            self.readings.pop(0)

    @property
    def last(self) -> Reading:
        return self.readings[-1]

    @property
    def _first(self) -> Reading:
        """What increases are counted from: a page without numbers, for those since the start."""
        return Reading(0.0) if self._counts_all else self.readings[0]

    @property
    def _counts_all(self) -> bool:
        return self._since_start or len(self.readings) == 1

    @property
    def period(self) -> str:
        """The time of which increases are, in at most 11 characters."""
        if self._counts_all:
            return "since start"
        seconds = self.last.at - self._first.at
        return "last minute" if seconds > self._seconds - 2 else f"last {seconds:.0f} s"

    def rate(self, name: str, **labels: str) -> float:
        """Increase per second of a total over the last ten seconds."""
        recent = [each for each in self.readings if self.last.at - each.at <= 10.0]
        return _rate(recent[0], recent[-1], name, **labels)

    def rates(self, name: str, **labels: str) -> list[float]:
        """Increase per second from each reading to the next."""
        pairs: Iterator[tuple[Reading, Reading]] = zip(
            self.readings, self.readings[1:], strict=False
        )
        return [_rate(first, then, name, **labels) for first, then in pairs]

    def increase(self, name: str, **labels: str) -> float:
        """Increase of a total over the period."""
        return self.last.sum(name, **labels) - self._first.sum(name, **labels)

    def increases(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same by one of the labels."""
        first = self._first.by(name, label, **labels)
        last = self.last.by(name, label, **labels)
        return {each: value - first.get(each, 0.0) for each, value in last.items()}

    def mean(self, name: str, **labels: str) -> float | None:
        """The mean of a histogram over the period; None without values."""
        count = self.increase(f"{name}_count", **labels)
        return self.increase(f"{name}_sum", **labels) / count if count > 0 else None


def _rate(first: Reading, then: Reading, name: str, **labels: str) -> float:
    seconds = then.at - first.at
    return (then.sum(name, **labels) - first.sum(name, **labels)) / seconds if seconds > 0 else 0.0
