"""Reads adapters for the model of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from radixserve.adapters import AdapterSource
from radixserve.checkpoints.adapter_files import open_adapter
from radixserve.model.adapters import LoadedAdapter, check_adapter, load_adapter
from radixserve.model.loaded import LoadedModel


class AdapterLoader:
    """Loads adapters for one model (`adapters.Load`)."""

    def __init__(self, sources: Sequence[AdapterSource]) -> None:
        """Looks at the configurations and headers of new adapters, before there is a model. Raises
        AdapterRefused if one is damaged or of a kind that is not served.
        """
        self.model: LoadedModel | None = None  # to be set before the first call
        for each in sources:
            if not each.digest:
                open_adapter(Path(each.path))

    def __call__(self, source: AdapterSource, check_room: Callable[[int], None]) -> LoadedAdapter:
        """Read an adapter. Raises AdapterRefused if it does not fit the model, or as `check_room`
        does.
        """
        assert self.model is not None, "the model is loaded"
        opened = open_adapter(Path(source.path))
        check_adapter(opened, self.model)
        check_room(opened.num_bytes)
        return load_adapter(opened, self.model)
