"""Weights that are quantised at load: their values, the models that they make, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from radixserve.cache.kvcache import KVCache
from radixserve.checkpoints.opened import open_model
from radixserve.config import Settings
from radixserve.engine import build_tiers
from radixserve.engine.load import load
from radixserve.errors import ConfigError, ModelRefused
from radixserve.kernels.cpu.gemm.call import Gemm
from radixserve.kernels.cpu.gemm.codes import Packing
from radixserve.model.check import Expected
from radixserve.model.decoder import Decoder
from radixserve.model.loaded import LoadedModel
from radixserve.model.probes import CHUNKINGS, logits_in_chunks, probe_tokens
from radixserve.model.proof import weights_digest
from radixserve.model.quantise import BITS, OUTPUT_BITS, fewer_bytes, num_bytes, packed_linear
from radixserve.model.weights import Mlp
from radixserve.tensors import budget
from radixserve.tensors.kv import KVPool
from tests.tiny import CPU, VOCAB, load_tiny, tiny_model

WEIGHT = torch.randn(130, 192, generator=torch.Generator().manual_seed(0)) / 10


def values(gemm: Gemm) -> torch.Tensor:
    """All values of a packed weight."""
    return gemm.lookup()(torch.arange(gemm.out_features)).float()


@pytest.mark.parametrize(("bits", "inputs", "error"), [(8, 192, 0.01), (4, 192, 0.1), (4, 96, 0.1)])
def test_values_are_near_those_of_the_weight(bits: int, inputs: int, error: float) -> None:
    weight = WEIGHT[:, :inputs]
    found = values(packed_linear(weight, None, bits))
    assert (found - weight).norm() / weight.norm() < error
    assert not torch.equal(found, weight)


def test_a_value_takes_as_many_bits_as_is_said() -> None:
    weight = torch.zeros(128, 256)
    for bits, size in ((8, 8.5), (4, 5)):
        packed = packed_linear(weight, None, bits)
        assert packed.panels.memory.nbytes == num_bytes(weight.numel(), bits)
        assert num_bytes(weight.numel(), bits) == weight.numel() * size / 8
        assert torch.equal(values(packed), weight)


@pytest.mark.parametrize(
    "weight",
    [torch.randn(64, 40), torch.full((64, 64), 1e6).triu(), WEIGHT[:, :64] * torch.inf],
    ids=["inputs that no group divides", "values beyond half precision", "infinite"],
)
def test_what_cannot_be_quantised_keeps_its_values(weight: torch.Tensor) -> None:
    weight = weight.nan_to_num(posinf=torch.inf, neginf=-torch.inf)
    assert torch.equal(values(packed_linear(weight, None, 4)), weight)


def test_a_product_of_other_codes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Packing.put
    monkeypatch.setattr(
        Packing, "put", lambda self, first, rows: whole(self, first, rows.rows(0, 64))
    )
    with pytest.raises(ModelRefused, match="multiply to something else"):
        packed_linear(WEIGHT, torch.ones(130), 4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_computes_what_transformers_computes_with_the_same_values(bits: int) -> None:
    name = "llama_in_panels"
    loaded, reference = load_tiny(f"{name}_int{bits}"), tiny_model(name)
    assert loaded.exact
    assert loaded.decoder is not None
    layer = loaded.decoder.weights.layers[0]
    assert isinstance(layer.mlp, Mlp)
    assert layer.mlp.down.bits == bits
    assert loaded.decoder.weights.head.weight.bits == OUTPUT_BITS
    for module in reference.modules():
        if type(module) is nn.Linear:
            is_output = module is reference.get_output_embeddings()
            packed = packed_linear(module.weight.detach(), None, OUTPUT_BITS if is_output else bits)
            module.weight = nn.Parameter(values(packed), requires_grad=False)
    tokens = probe_tokens(VOCAB)[0]
    with torch.inference_mode():
        expected = Expected(reference(tokens[None]).logits, 0.0, torch.float32)
        original = tiny_model(name)(tokens[None]).logits[0]
    assert expected.difference(0, logits_in_chunks(loaded, tokens, CHUNKINGS[0])) < 1e-5
    assert expected.difference(0, original) > 1e-3


def test_a_tied_embedding_is_looked_up_in_the_codes_of_the_output_layer() -> None:
    decoder = load_tiny("llama_grouped_int4").decoder
    assert decoder is not None
    assert decoder.weights.embedding.weight is decoder.weights.head.weight


def test_what_has_no_kernel_for_codes_is_refused_by_name(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    settings = Settings(quantize="int4", dtype="float16")
    with pytest.raises(ConfigError, match=r"quantize is 'int4', which works .* not with float16"):
        load(settings, str(tmp_path), CPU)


def test_a_model_needs_the_memory_of_its_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of linears are read one by one, and the engine says what was made of them."""
    tiny_model("llama_in_panels").save_pretrained(tmp_path)
    opened, kv = open_model(str(tmp_path)), 1 << 20
    whole, sizes = opened.num_bytes(torch.float32, CPU), opened.sizes_of_linears()
    fewer = fewer_bytes(sizes, torch.float32, 4)
    assert len(sizes) == 2 * 7 + 1
    assert whole / 2 < fewer < sum(sizes) * 4
    monkeypatch.setattr(budget, "free_bytes", lambda device: whole - fewer + kv)
    with pytest.raises(ConfigError, match=r"The model takes .* of memory are free"):
        load(Settings(kv_budget=kv), str(tmp_path), CPU)
    loaded = load(Settings(kv_budget=kv, quantize="int4"), str(tmp_path), CPU)
    monkeypatch.setattr(budget, "free_bytes", lambda device: whole - fewer + kv - 1)
    with pytest.raises(ConfigError, match=r"The model takes .* of memory are free"):
        load(Settings(kv_budget=kv, quantize="int4"), str(tmp_path), CPU)
    assert digest_of(loaded.model) == digest_of(load_tiny("llama_in_panels_int4"))


def digest_of(loaded: LoadedModel) -> str:
    assert isinstance(loaded.decoder, Decoder)
    return weights_digest(loaded.decoder)


def test_stored_keys_and_values_belong_to_what_computed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def fingerprint(folder: Path, store: object, computed_by: str) -> str:
        told.append(computed_by)
        return "f"

    monkeypatch.setattr(build_tiers, "folder_fingerprint", fingerprint)
    loaded = load_tiny("llama_in_panels")
    for quantize in BITS:
        settings = Settings(quantize=quantize, disk_path=str(tmp_path / quantize))
        pool, cache = KVPool(loaded.shape, 64, CPU), KVCache(64)
        build_tiers.make_tiers(settings, str(tmp_path), loaded, pool, cache).close(1.0)
    assert len(set(told)) == 3
