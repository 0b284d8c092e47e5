"""Captures what a function launches on a CUDA device as a graph, whatever it launches."""

from __future__ import annotations

from collections.abc import Callable

import torch

Replay = Callable[[], torch.Tensor]
"""Computes a tensor; all replays of one graph overwrite the same memory."""
Capture = Callable[[Replay], Replay]
"""Gives a function that does the same as its argument, with less work for the host."""


class CudaCapture:
    """Records what a function without arguments launches, as a graph to be replayed. All graphs
    share one memory pool.
    """

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        """Run once outside a graph, which compiles kernels and makes workspaces, then record.

        Raises:
            RuntimeError: something that `run` does cannot be captured.
        """
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            out = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay
