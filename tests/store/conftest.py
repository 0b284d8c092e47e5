"""Hypothesis profiles of this folder: `pytest tests/store --hypothesis-profile=nightly` tries fifty
times as much.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("nightly", settings.get_profile("default"), max_examples=5000)
