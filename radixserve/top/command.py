"""The loop of `radixserve top`: read, draw, wait a second or for a key."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.live import Live

from radixserve.top.screen import WIDTH, printable, screen
from radixserve.top.source import History, Node, Source, TopError

_EVERY_SECONDS = 1.0
_TREE_SECONDS = 5.0  # between two looks at the tree, which cost more


class Watch:
    """What is known of a server."""

    def __init__(self, source: Source, *, since_start: bool = False) -> None:
        self.source, self.history = source, History(since_start=since_start)
        self.prefixes: list[Node] | str = ""
        self.trouble: str | None = None
        self._tree_at = -_TREE_SECONDS

    def look(self) -> None:
        """Read once more. Afterwards `trouble` says what failed, if anything did."""
        try:
            self.history.add(self.source.read())
            self.trouble = None
        except TopError as error:
            self.trouble = str(error)
            return
        if time.monotonic() - self._tree_at >= _TREE_SECONDS:
            self._tree_at = time.monotonic()
            try:
                self.prefixes = self.source.prefixes()
            except TopError as error:
                self.prefixes = str(error)


def main(url: str, key: str | None, model: str | None = None) -> int:
    """Watch a model until q or Ctrl-C; without a terminal show one screen, with all since the
    server's start and the speeds of a second. The exit status is 1 if the server does not answer at
    first.
    """
    console = Console(highlight=False)
    is_watched = sys.stdin.isatty() and console.is_terminal
    try:
        watch = Watch(Source(url, key, model), since_start=not is_watched)
    except TopError as error:
        return _refuse(error)
    watch.look()
    if watch.trouble is not None:
        return _refuse(watch.trouble)
    with contextlib.suppress(KeyboardInterrupt):
        if is_watched:
            _watch(watch, console)
        else:
            _show_once(watch, console)
    return 0


def _refuse(reason: object) -> int:
    print(f"radixserve top: {printable(str(reason))}", file=sys.stderr)
    return 1


def _show_once(watch: Watch, console: Console) -> None:
    time.sleep(_EVERY_SECONDS)
    watch.look()
    console.width = WIDTH
    console.print(_drawn(watch))


def _watch(watch: Watch, console: Console) -> None:
    with _single_keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_drawn(watch), refresh=True)
            if _is_ended(_EVERY_SECONDS):
                return
            watch.look()


def _drawn(watch: Watch) -> RenderableType:
    return screen(watch.source.url, watch.history, watch.prefixes, watch.trouble)


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Get keys at once and unseen, as long as the block lasts."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _is_ended(seconds: float) -> bool:
    """Wait; whether q was pressed, or the terminal is gone."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not select.select([sys.stdin], [], [], left)[0]:
            return False
        if os.read(sys.stdin.fileno(), 64).lower()[:1] in (b"q", b""):
            return True
    return False
