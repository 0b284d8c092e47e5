"""Quantised checkpoints of safetensors: their values are those that the tools that wrote them would
dequantise, models compute what transformers computes with these values, and what is damaged is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from radixserve.checkpoints.opened import open_model
from radixserve.model.load import load_model
from radixserve.model.probes import CHUNKINGS, logits_in_chunks
from radixserve.model.runner import Runner
from radixserve.tensors.kv import KVPool
from tests.checkpoints.damage import change_config, change_weights
from tests.checkpoints.quantised import (
    Rounded,
    Tensors,
    awq,
    compressed,
    gptq,
    in_bytes,
    packed,
    rounded,
    write,
)
from tests.checkpoints.test_damaged import refusal
from tests.tiny import CPU, VOCAB, greedy

HALF, BFLOAT = torch.float16, torch.bfloat16
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
W8A8 = compressed("int-quantized", num_bits=8, strategy="channel")
W4A16 = compressed("pack-quantized", num_bits=4, strategy="group", group_size=32)
Quantise = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]


def by(
    bits: int,
    group: int | None,
    dtype: torch.dtype,
    pack: Callable[[Rounded], Tensors],
    symmetric: bool = True,
) -> Quantise:
    """Rounds to integers, and packs them."""

    def quantise(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        found = rounded(weight, bits, group or weight.shape[1], dtype, symmetric)
        return pack(found), found.values()

    return quantise


def in_order_of_activations(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """As GPTQ with `desc_act`: the inputs of a group are no neighbours."""
    found = rounded(weight, 4, 32, HALF, symmetric=True)
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(3)) // 32
    values = (found.codes - 8) * found.scales.float()[:, order]
    return gptq(found) | {"g_idx": order.int()}, values


def with_bytes_of_zeros(weight: Rounded) -> Tensors:
    """As compressed-tensors writes zero points of W8A8."""
    return in_bytes(weight) | {"weight_zero_point": (weight.zeros - 128).to(torch.int8)}


def floats(name: str, block: tuple[int, int] | None, by_row: bool = False) -> Quantise:
    """Rounds to FP8, with scales by block, by row, or one for all."""

    def quantise(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outputs, inputs = weight.shape
        rows, columns = block or (1 if by_row else outputs, inputs)
        whole = F.pad(weight, (0, -inputs % columns, 0, -outputs % rows))
        scales = F.max_pool2d(whole.abs()[None], (rows, columns), (rows, columns))[0] / 448
        each = scales.repeat_interleave(rows, 0)[:outputs]
        each = each.repeat_interleave(columns, 1)[:, :inputs]
        stored = (weight / each).to(torch.float8_e4m3fn)
        found = {"weight": stored, name: scales if block or by_row else scales.view(1)}
        return found | {"input_scale": torch.ones(1)}, stored.float() * each

    return quantise


FORMS: dict[str, tuple[dict[str, Any], Quantise]] = {
    "GPTQ": (GPTQ, by(4, 32, HALF, gptq)),
    "GPTQ of 8 bits by row": (
        GPTQ | {"bits": 8, "group_size": -1, "sym": False},
        by(8, None, HALF, gptq, symmetric=False),
    ),
    "GPTQ v2": (
        GPTQ | {"checkpoint_format": "gptq_v2"},
        by(4, 32, HALF, lambda weight: gptq(weight, less=0), symmetric=False),
    ),
    "GPTQ in order of activations": (GPTQ | {"desc_act": True}, in_order_of_activations),
    "AWQ": (AWQ, by(4, 32, HALF, awq, symmetric=False)),
    "W4A16": (W4A16, by(4, 32, BFLOAT, packed)),
    "W4A16 with zero points": (
        compressed("pack-quantized", num_bits=4, group_size=32, symmetric=False),
        by(4, 32, BFLOAT, packed, symmetric=False),
    ),
    "W8A16": (
        compressed("pack-quantized", num_bits=8, strategy="channel"),
        by(8, None, BFLOAT, packed),
    ),
    "W8A8": (W8A8, by(8, None, BFLOAT, in_bytes)),
    "W8A8 with zero points": (
        compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False),
        by(8, None, BFLOAT, with_bytes_of_zeros, symmetric=False),
    ),
    "FP8 by block": (
        {"quant_method": "fp8", "weight_block_size": [48, 40]},
        floats("weight_scale_inv", (48, 40)),
    ),
    "FP8 by row": (
        compressed("float-quantized", type="float", strategy="channel"),
        floats("weight_scale", None, by_row=True),
    ),
    "FP8 with one scale": (
        compressed("float-quantized", type="float", strategy="tensor"),
        floats("weight_scale", None),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_definition(form: str, tmp_path: Path) -> None:
    model = write(tmp_path, "llama_in_panels", *FORMS[form])
    opened = open_model(str(tmp_path))
    tensors = opened.checkpoint.tensors
    names = [name for name, each in model.named_parameters() if each.dim() == 2]
    for name in names:
        assert torch.equal(tensors[name][...].float(), model.get_parameter(name)), name  # type: ignore[index]
    kept = opened.kept_codes
    for name, each in kept.items():
        assert torch.equal(each.grouped().values(), model.get_parameter(name)), name
    assert len(kept) == (0 if "order" in form or "FP8" in form else 14)


SERVED = ("GPTQ", "AWQ", "W8A8")  # one for each kind of codes; each costs the time of compiling


@pytest.mark.parametrize("form", SERVED)
def test_a_model_computes_what_transformers_computes_with_its_values(
    form: str, tmp_path: Path
) -> None:
    model = write(tmp_path, "qwen3_in_panels", *FORMS[form])
    loaded = load_model(str(tmp_path), CPU, torch.float32)
    assert (loaded.exact, loaded.generic_reason) == (True, None)
    prompt = torch.arange(40) % VOCAB
    whole, cut = (logits_in_chunks(loaded, prompt, counts) for counts in CHUNKINGS)
    assert torch.equal(whole, cut)
    with torch.inference_mode():
        expected = model(prompt[None]).logits[0]
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    answer = model.generate(prompt[None], max_new_tokens=12, min_new_tokens=12, do_sample=False)
    pool = KVPool(loaded.shape, 64, CPU)
    assert greedy(Runner(loaded, pool), prompt.tolist(), 12) == answer[0, 40:].tolist()


def test_experts_are_widened(tmp_path: Path) -> None:
    model = write(tmp_path, "qwen3_moe", *FORMS["GPTQ"])
    loaded = load_model(str(tmp_path), CPU, torch.float32)
    assert (loaded.exact, loaded.generic_reason) == (True, None)
    tokens = torch.arange(40) % VOCAB
    with torch.inference_mode():
        expected = model(tokens[None]).logits[0]
    ours = logits_in_chunks(loaded, tokens, CHUNKINGS[0])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_memory_is_that_of_the_codes(tmp_path: Path) -> None:
    write(tmp_path, "llama_in_panels", *FORMS["GPTQ"])
    opened = open_model(str(tmp_path))
    codes = sum(each.num_bytes() for each in opened.kept_codes.values())
    wide = sum(4 * each.shape[0] * each.shape[1] for each in opened.kept_codes.values())
    assert opened.num_bytes(torch.float32, CPU) == (
        opened.num_bytes(torch.float32, torch.device("cuda")) - wide + codes
    )
    assert wide / 6 < codes < wide / 5  # 4 bits of 32, and scales of groups of 32


def test_experts_in_mxfp4_have_the_values_that_transformers_reads() -> None:
    from radixserve.checkpoints.mxfp4 import values_of

    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 6, 3, 16), generator=draw, dtype=torch.uint8)
    scales = torch.randint(100, 140, (2, 6, 3), generator=draw, dtype=torch.uint8)
    assert torch.equal(values_of(blocks, scales), convert_moe_packed_tensors(blocks, scales))


# What is damaged.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "llama_in_panels", *FORMS["GPTQ"])
    return tmp_path


Q = "model.layers.0.self_attn.q_proj"


def changed(folder: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """What is said of a folder in which a tensor of a weight is another one."""

    def apply(tensors: Tensors) -> None:
        tensors[f"{Q}.{part}"] = change(tensors[f"{Q}.{part}"]).contiguous()

    change_weights(folder, apply)
    return refusal(folder)


def spoiled(tensor: torch.Tensor, index: tuple[int, ...], value: float) -> torch.Tensor:
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("scales", lambda each: each[:1], "there are 1 scales for each output, which does not fit"),
        ("scales", lambda each: each[:, :8], f"of the weight {Q} scales is [2, 8] and not [2, 64]"),
        ("scales", lambda each: each.int(), "scales holds I32 and not F16 or BF16 or F32"),
        ("scales", lambda each: spoiled(each, (0, 3), torch.nan), f"{Q}.scales holds NaN"),
        ("scales", lambda each: spoiled(each, (0, 3), torch.inf), f"of {Q}.weight its scales are"),
        ("qzeros", lambda each: each[:, :4], "qzeros is [2, 4] and not [2, 8]"),
        ("qweight", lambda each: each[:4], "there are 2 scales for each output"),
        ("qweight", lambda each: each[:, :32], "scales is [2, 64] and not [2, 32]"),
        ("qweight", lambda each: each.float(), "qweight holds F32 and not I32"),
        ("qweight", lambda each: each[0], "qweight is [64], which is no matrix"),
        ("qweight", lambda each: each[:0], "qweight is [0, 64], which is no matrix"),
        ("g_idx", lambda each: each[:8], "g_idx is [8] and not [64]"),
        ("g_idx", lambda each: each + 1, f"{Q}.g_idx names groups outside of the 2"),
        ("g_idx", lambda each: each - 2, f"{Q}.g_idx names groups outside of the 2"),
        ("g_idx", lambda each: each * 0, f"{Q}.g_idx names groups of more than 32 inputs"),
    ],
)
def test_a_weight_that_is_damaged_is_refused(
    part: str, change: Any, words: str, folder: Path
) -> None:
    sentence = changed(folder, part, change)
    assert "FOLDER/model.safetensors is" in sentence
    assert words in sentence


@pytest.mark.parametrize("part", ["scales", "qzeros"])
def test_a_part_that_is_missing_is_named(part: str, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop(f"{Q}.{part}"))
    assert refusal(folder) == (
        f"FOLDER/model.safetensors is not served: of the weight {Q} {part} is missing."
    )


def test_a_weight_that_is_missing_is_named(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop(f"{Q}.qweight"))
    assert f"1 missing ({Q}.weight), 3 unexpected ({Q}.g_idx, {Q}.qzeros" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"group_size": 48}, "does not fit 4 bits in groups of 48 of 128 inputs"),
        ({"bits": 8}, "does not fit 8 bits in groups of 32 of 64 inputs"),
        ({"bits": 3}, "The model in FOLDER is quantised with bits 3, which is not served"),
        ({"quant_method": "awq"}, "does not fit 4 bits in groups of 32 of 16 inputs"),
        ({"quant_method": "unheard_of"}, "The model in FOLDER is quantised by unheard_of, which"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    settings: dict[str, Any], words: str, folder: Path
) -> None:
    change_config(folder, quantization_config=GPTQ | settings)
    assert words in refusal(folder)


def test_biases_of_zeros_that_a_model_does_not_have_are_dropped(folder: Path) -> None:
    change_weights(folder, lambda each: each.update({f"{Q}.bias": torch.zeros(64)}))
    assert f"{Q}.bias" not in open_model(str(folder)).checkpoint.tensors
    change_weights(folder, lambda each: each.update({f"{Q}.bias": torch.ones(64)}))
    assert f"1 unexpected ({Q}.bias)" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("weight_shape", torch.tensor([64, 0]), "weight_shape is [64, 0], which is not"),
        ("weight_shape", torch.tensor([-1, 64]), "weight_shape is [-1, 64], which is not"),
        ("weight_shape", torch.tensor([64, 48]), "weight_packed is [64, 8] and not [64, 6]"),
        ("weight_scale", torch.ones(8, 2), "weight_scale is [8, 2] for 64 outputs"),
        ("weight_zero_point", torch.ones(1, 2).int(), "zero_point is [1, 2] and not [8, 2]"),
    ],
)
def test_a_weight_of_compressed_tensors_that_is_damaged_is_refused(
    part: str, value: torch.Tensor, words: str, tmp_path: Path
) -> None:
    write(tmp_path, "llama_in_panels", *FORMS["W4A16"])
    change_weights(tmp_path, lambda tensors: tensors.update({f"{Q}.{part}": value}))
    assert words in refusal(tmp_path)


def test_floats_of_8_bits_without_scales_or_that_are_no_numbers_are_refused(
    tmp_path: Path,
) -> None:
    write(tmp_path, "llama_in_panels", *FORMS["FP8 by block"])
    nan = lambda each: torch.full_like(each, torch.nan)  # noqa: E731
    assert f"{Q}.weight holds NaN or infinity" in changed(tmp_path, "weight", nan)
    scales = f"{Q}.weight_scale_inv"
    change_weights(tmp_path, lambda tensors: tensors.update({scales: torch.ones(3, 3)}))
    assert "weight_scale_inv is [3, 3], which does not fit a weight [64, 64]" in refusal(tmp_path)
    change_weights(tmp_path, lambda tensors: tensors.pop(scales))
    assert "weight_scale is missing" in refusal(tmp_path)
