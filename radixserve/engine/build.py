"""From settings to an engine that is ready to step: device, model, K/V pool, cache, scheduler.

Imported by the engine process after its first message, because torch and transformers load with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from radixserve.cache.kvcache import KVCache
from radixserve.cache.pool import KVPool
from radixserve.config import Settings
from radixserve.engine.core import EngineCore, StepModel
from radixserve.engine.scheduler import Limits
from radixserve.errors import ConfigError, ModelRefused
from radixserve.model.budget import num_slots
from radixserve.model.fake import FakeModel
from radixserve.model.loader import load_model
from radixserve.model.runner import Runner
from radixserve.step import EngineInfo

_FAKE_SLOT_BYTES = 16
