"""What cannot be had with a dtype of K/V is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from radixserve.cache.kvcache import KVCache
from radixserve.config import Settings
from radixserve.engine.build_tiers import make_tiers
from radixserve.errors import ConfigError
from radixserve.model.dtypes import kv_dtype_of
from radixserve.model.load import prepare_model
from radixserve.tensors.kv import KV_DTYPES, KVPool
from tests.tiny import CPU, tiny_model


def test_same_is_the_type_of_the_weights() -> None:
    for device in ("cpu", "cuda"):
        assert kv_dtype_of("same", torch.bfloat16, torch.device(device)) == torch.bfloat16
    assert kv_dtype_of("bfloat16", torch.bfloat16, torch.device("cuda")) == torch.bfloat16
    assert [kv_dtype_of(name, torch.float32, CPU) for name in KV_DTYPES] == [*KV_DTYPES.values()]


@pytest.mark.parametrize("name", ["float32", "int8", "fp8"])
def test_cuda_has_no_kernel_for_another_type(name: str) -> None:
    with pytest.raises(ConfigError, match=f"kv_dtype is '{name}', but on CUDA .*bfloat16"):
        kv_dtype_of(name, torch.bfloat16, torch.device("cuda"))


def test_numbers_with_a_scale_do_not_become_float8_in_the_tiers(tmp_path: Path) -> None:
    loaded = prepare_model(tiny_model("llama_grouped"), CPU, torch.int8)
    chosen = Settings(disk_path=str(tmp_path / "s"), tier_dtype="float8", kv_dtype="int8")
    pool, cache = KVPool(loaded.shape, 64, CPU), KVCache(64)
    with pytest.raises(ConfigError, match=r"tier_dtype is 'float8', but .* int8 \(kv_dtype\)"):
        make_tiers(chosen, "a model", loaded, pool, cache)
    assert not (tmp_path / "s").exists()
