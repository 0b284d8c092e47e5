"""The screen of `radixserve top`, at most 80 characters wide and 24 lines high."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from radixserve.top.source import History, Node
from radixserve.top.tenants import Share, shares

WIDTH: Final = 80
_PREFIXES: Final = 7  # rows of the table, less where there is one of tenants
_TENANTS: Final = 3  # rows of the table, the last one for all others
_BAR: Final = 28
_LABEL: Final = 12
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_PROMPT: Final = "radixserve_prompt_tokens_total"
_TTFT: Final = "radixserve_time_to_first_token_seconds"


def screen(
    url: str, history: History, prefixes: Sequence[Node] | str, trouble: str | None
) -> RenderableType:
    """Everything. `prefixes` may be the reason why there are none; `trouble` says why the numbers
    are old.
    """
    tenants = shares(history, _TENANTS)
    num_prefixes = _PREFIXES - (len(tenants) + 1 if tenants else 0)
    return Group(
        _title(url, history, trouble),
        Text(),
        _hits(history),
        _hits_over_time(history),
        Text(),
        _requests(history),
        _speed(history),
        _tokens_over_time(history),
        _times(history),
        Text(),
        *_memory(history),
        Text(),
        *([_tenants(tenants, history.period)] if tenants else []),
        _prefixes(prefixes, num_prefixes),
        Text("q or Ctrl-C ends this", style="dim"),
    )


def _line(label: str, *parts: str | Text) -> Text:
    line = Text(f"{label:<{_LABEL}}", style="bold", no_wrap=True, overflow="ellipsis")
    for part in parts:
        line.append_text(part if isinstance(part, Text) else Text(part, style="not bold"))
    return line


def _title(url: str, history: History, trouble: str | None) -> Text:
    last = history.last
    if trouble is not None:
        return Text(printable(trouble), style="red", no_wrap=True, overflow="ellipsis")
    ready = last.sum("radixserve_engine_up") > 0
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append("radixserve ", "bold")
    title.append("ready" if ready else "not ready", "green" if ready else "red")
    title.append(f"  {printable(url)}  ")
    title.append(printable(last.label("radixserve_model_info", "model")), "bold cyan")
    return title


def _hits(history: History) -> Text:
    """The share of the period by tier."""
    tokens = {
        source: history.increase(_PROMPT, source=source)
        for source in history.last.by(_PROMPT, "source")
    }
    total = sum(tokens.values())
    if not total:
        return _line("Hit share", Text("no prompts", style="dim not bold"))
    computed = tokens.pop("computed", 0.0)
    tiers = "  ".join(f"{name} {count / total:.0%}" for name, count in tokens.items() if count)
    share = 1 - computed / total
    return _line("Hit share", _bar(share, "green"), f" {share:4.0%}  ", Text(tiers, style="dim"))


def _hits_over_time(history: History) -> Text:
    totals = history.rates(_PROMPT)
    computed = history.rates(_PROMPT, source="computed")
    shares = [
        1 - part / total if total else math.nan
        for part, total in zip(computed, totals, strict=True)
    ]
    return _line(history.period, Text(_sparkline(shares, 1.0), style="green"))


def _requests(history: History) -> Text:
    last = history.last
    running = last.sum("radixserve_requests_running")
    waiting = last.sum("radixserve_requests_waiting")
    backlog = last.sum("radixserve_backlog_tokens")
    style = "yellow" if waiting else "not bold"
    return _line(
        "Requests",
        f"{running:.0f} running  ",
        Text(f"{waiting:.0f} waiting", style=style),
        f"  {backlog:,.0f} tokens to compute before them",
    )


def _speed(history: History) -> Text:
    generated = history.rate("radixserve_generated_tokens_total")
    computed = history.rate(_PROMPT, source="computed")
    ended = history.rate("radixserve_requests_total")
    failed = history.rate("radixserve_requests_total", outcome="error")
    failed += history.rate("radixserve_requests_total", outcome="rejected")
    words = f"{generated:,.0f} tokens/s out  {computed:,.0f}/s computed of prompts  "
    errors = Text(f"  {failed:.1f} failed/s", style="red") if failed > 0.05 else ""
    return _line("Speed", words, f"{ended:.1f} requests/s", errors)


def _tokens_over_time(history: History) -> Text:
    rates = history.rates("radixserve_generated_tokens_total")
    return _line("", Text(_sparkline(rates, max(rates, default=0.0)), style="cyan"))


def _times(history: History) -> Text:
    words = [
        f"{prefix} {_duration(history.mean(_TTFT, prefix=prefix))}" for prefix in ("warm", "cold")
    ]
    between = _duration(history.mean("radixserve_inter_token_seconds"))
    return _line("First token", "  ".join(words), f"  between tokens {between}")


def _memory(history: History) -> list[Text]:
    last = history.last
    states = last.by("radixserve_kv_bytes", "state")
    budget = states.get("budget", 0.0)
    leased, evictable = states.get("leased", 0.0), states.get("evictable", 0.0)
    bar = Text()
    in_use = round(_BAR * leased / budget) if budget else 0
    cached = round(_BAR * evictable / budget) if budget else 0
    bar.append("█" * in_use, "magenta").append("█" * cached, "blue")
    bar.append("░" * (_BAR - in_use - cached), "dim")
    words = f" {_size(leased + evictable)} of {_size(budget)}  {_size(leased)} in use"
    lines = [_line("K/V device", bar, words)]
    for tier in last.by("radixserve_tier_bytes", "tier"):
        most = last.sum("radixserve_tier_bytes", tier=tier, state="budget")
        used = last.sum("radixserve_tier_bytes", tier=tier, state="used")
        if most:
            shown = _bar(used / most, "blue")
            lines.append(_line(f"    {tier}", shown, f" {_size(used)} of {_size(most)}"))
    evicted = history.rate("radixserve_evicted_tokens_total")
    nodes = last.sum("radixserve_tree_nodes")
    lines.append(_line("", f"{nodes:,.0f} nodes  {evicted:,.0f} tokens/s evicted"))
    return lines


def _tenants(tenants: Sequence[Share], period: str) -> RenderableType:
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="bold")
    table.add_column(f"Tenants, {period}", no_wrap=True, overflow="ellipsis", ratio=1)
    for title in ("Prompts", "Hit share", "K/V", "Running", "Waiting"):
        table.add_column(title, justify="right", no_wrap=True, width=9)
    for each in tenants:
        share = f"{each.cached / each.prompt:.0%}" if each.prompt else "-"
        waiting = Text(f"{each.waiting:.0f}", style="yellow" if each.waiting else "")
        table.add_row(
            printable(each.name),
            f"{each.prompt:,.0f}",
            share,
            _size(each.kv_bytes),
            f"{each.running:.0f}",
            waiting,
        )
    return table


def _prefixes(nodes: Sequence[Node] | str, most: int) -> RenderableType:
    if isinstance(nodes, str):
        return _line("Prefixes", Text(printable(nodes), style="dim not bold"))
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="bold")
    for title in ("Tokens", "Hits", "Age"):
        table.add_column(title, justify="right", no_wrap=True, width=7)
    table.add_column("Most used prefixes begin with", no_wrap=True, overflow="ellipsis", ratio=1)
    for node in nodes[:most]:
        style = "magenta" if node.leased else ""
        text = Text(printable(node.text), style=style)
        table.add_row(f"{node.tokens:,}", f"{node.hits:,}", _age(node.age_seconds), text)
    return table


def printable(text: str) -> str:
    """`text` without characters that a terminal would obey, because clients wrote it."""
    return "".join(each if each.isprintable() else "·" for each in text)


def _bar(share: float, style: str) -> Text:
    full = round(_BAR * min(1.0, max(0.0, share)))
    return Text().append("█" * full, style).append("░" * (_BAR - full), "dim")


def _sparkline(values: Sequence[float], most: float) -> str:
    """The newest values, one character each; a blank where there was nothing."""
    return "".join(_block(value, most) for value in values[-(WIDTH - _LABEL) :])


def _block(value: float, most: float) -> str:
    if math.isnan(value) or most <= 0:
        return " "
    return _BLOCKS[min(len(_BLOCKS) - 1, max(0, int(value / most * len(_BLOCKS))))]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
