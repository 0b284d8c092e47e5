"""What `quantization_config` may say: which forms are served, and that everything else is refused
by name.
"""

from __future__ import annotations

from typing import Any

import pytest

from radixserve.checkpoints.quantisation import Form, Layout, NotServed, quantisation_of
from tests.checkpoints.quantised import compressed

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
W4A16 = compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128)
W8A8 = compressed("int-quantized", num_bits=8, type="int", strategy="channel")
FP8_DYNAMIC = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
ASYMMETRIC = compressed("pack-quantized", num_bits=4, group_size=32, symmetric=False)


@pytest.mark.parametrize(
    ("settings", "layout", "forms", "block"),
    [
        (GPTQ, Layout.GPTQ, (Form(4, 128),), None),
        (GPTQ | {"bits": 8, "group_size": -1}, Layout.GPTQ, (Form(8, None),), None),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, Layout.GPTQ_V2, (Form(4, 128),), None),
        (
            GPTQ | {"dynamic": {"-:.*down.*": {}, "+:.*18.*": {"bits": 8, "group_size": 64}}},
            Layout.GPTQ,
            (Form(4, 128), Form(8, 64)),
            None,
        ),
        (AWQ, Layout.AWQ, (Form(4, 128),), None),
        (AWQ | {"version": "GEMM"}, Layout.AWQ, (Form(4, 128),), None),
        (W4A16, Layout.COMPRESSED, (Form(4, 128),), None),
        (W8A8, Layout.COMPRESSED, (Form(8, None),), None),
        (ASYMMETRIC, Layout.COMPRESSED, (Form(4, 32, is_symmetric=False),), None),
        (FP8_DYNAMIC, Layout.COMPRESSED, (), None),
        (FP8, Layout.FP8, (), (128, 128)),
        ({"quant_method": "fp8"}, Layout.FP8, (), None),
        ({"quant_method": "mxfp4", "modules_to_not_convert": []}, Layout.MXFP4, (), None),
    ],
)
def test_what_is_served(
    settings: dict[str, Any], layout: Layout, forms: tuple[Form, ...], block: Any
) -> None:
    found = quantisation_of(settings)
    assert found is not None
    assert (found.layout, found.forms, found.block) == (layout, forms, block)


def test_a_checkpoint_without_quantisation_has_none() -> None:
    assert quantisation_of(None) is None


REFUSED: dict[str, Any] = {
    "quantization_config is no object but 'x'": "x",
    "by None, which is not served (compressed-tensors, gptq": {},
    "by bitsandbytes, which": {"quant_method": "bitsandbytes"},
    "bits 3, which is not served (4 and 8": GPTQ | {"bits": 3},
    "bits True": GPTQ | {"bits": True},
    "bits None": {"quant_method": "gptq"},
    "group_size 0": GPTQ | {"group_size": 0},
    "group_size '128'": GPTQ | {"group_size": "128"},
    "checkpoint_format 'marlin'": GPTQ | {"checkpoint_format": "marlin"},
    "checkpoint_format ['gptq']": GPTQ | {"checkpoint_format": ["gptq"]},
    "pack_dtype 'int16'": GPTQ | {"pack_dtype": "int16"},
    "dynamic [1]": GPTQ | {"dynamic": [1]},
    "bits 2,": GPTQ | {"dynamic": {"x": {"bits": 2}}},
    "version 'gemv'": AWQ | {"version": "gemv"},
    "zero_point False": AWQ | {"zero_point": False},
    "bits 8, which is not served (4 is)": AWQ | {"bits": 8},
    "fmt 'e5m2'": FP8 | {"fmt": "e5m2"},
    "weight_block_size [128]": FP8 | {"weight_block_size": [128]},
    "weight_block_size [128, -1]": FP8 | {"weight_block_size": [128, -1]},
    "quantization_status 'frozen'": W4A16 | {"quantization_status": "frozen"},
    "sparsity_config {'format': 'sparse": W4A16 | {"sparsity_config": {"format": "sparse-24"}},
    "transform_config": W4A16 | {"transform_config": {"config_groups": {"R1": {}}}},
    "config_groups None": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "format 'marlin-24'": compressed("marlin-24", num_bits=4, group_size=128),
    "format 'nvfp4-pack-quantized'": compressed("nvfp4-pack-quantized", num_bits=4, type="float"),
    "num_bits 2,": compressed("pack-quantized", num_bits=2, group_size=128),
    "num_bits 4, which is not served (8": compressed("naive-quantized", num_bits=4, type="float"),
    "strategy 'tensor_group'": compressed("pack-quantized", num_bits=4, strategy="tensor_group"),
    "strategy 'group', which is not served (tensor": compressed(
        "float-quantized", type="float", strategy="group", group_size=32
    ),
    "group_size None": compressed("pack-quantized", num_bits=4, strategy="group"),
    "block_structure None": compressed("float-quantized", type="float", strategy="block"),
    "weights 5": W4A16 | {"config_groups": {"group_0": {"weights": 5}}},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_served_is_refused_by_name(words: str) -> None:
    with pytest.raises(NotServed) as refused:
        quantisation_of(REFUSED[words])
    assert words in str(refused.value)
    assert len(str(refused.value)) < 200
