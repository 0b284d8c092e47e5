"""What the server keeps for the page, whether one is open or not: bounded, and made once."""

from __future__ import annotations

from radixserve.api.ui.history import History
from radixserve.api.ui.live import LiveRequests
from radixserve.front.protocol import EngineClient


class PageState:
    """The requests and the history that pages show, and how many pages are open.

    Attributes:
        num_open: pages that get events now.
    """

    def __init__(self, engine: EngineClient) -> None:
        self.live = LiveRequests()
        self.history = History(engine)
        self.num_open = 0
