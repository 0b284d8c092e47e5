"""Where the tensors of a quantised weight lie in a checkpoint of safetensors: their names, shapes
and dtypes, which are checked from the headers, so that nothing is read of a checkpoint that is
refused for them. How codes lie in words is in `packed_integers`; what `quantization_config` says of
a checkpoint is in `quantisation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from radixserve.checkpoints.headers import StoredTensor, Tensor, short
from radixserve.checkpoints.packed_integers import (
    codes_in_columns,
    codes_in_rows,
    codes_of_awq,
    words_for,
)
from radixserve.checkpoints.quantisation import Form, Layout, Quantisation
from radixserve.checkpoints.quantised_tensors import CodedTensor, WidenedTensor
from radixserve.errors import ModelRefused

_FLOATS = ("F16", "BF16", "F32")
_FP8 = "F8_E4M3"


class ModuleTensors:
    """The tensors of one module. `taken` are the names of those that a weight was made of."""

    def __init__(
        self, name: str, parts: Mapping[str, StoredTensor], quantisation: Quantisation
    ) -> None:
        self._name, self._parts, self._quantisation = name, parts, quantisation
        self.taken: set[str] = set()

    def gptq(self) -> CodedTensor:
        """A weight of GPTQ: words of inputs, one column for each output."""
        words = self._matrix("qweight", "I32")
        [rows, outputs] = words.get_shape()
        scales = self._matrix("scales", *_FLOATS)
        form = self._form(lambda bits: rows * 32 // bits, scales.get_shape()[0])
        inputs = rows * 32 // form.bits
        groups = _groups(inputs, form)
        self._expect(scales, [groups, outputs])
        zeros = self._matrix("qzeros", "I32")
        self._expect(zeros, [groups, words_for(outputs, form.bits)])
        less = 1 if self._quantisation.layout == Layout.GPTQ else 0
        most = (1 << form.bits) - 1

        def read() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            points = codes_in_rows(zeros[...], form.bits, outputs).T
            return (
                codes_in_columns(words[...], form.bits, inputs),
                scales[...].T.contiguous(),
                (points + less & most).contiguous(),
            )

        order = self._order("g_idx", inputs)
        return self._coded((outputs, inputs), form, scales, read, order)

    def awq(self) -> CodedTensor:
        """A weight of AWQ: words of outputs, one row for each input."""
        words = self._matrix("qweight", "I32")
        [inputs, columns] = words.get_shape()
        outputs, scales = columns * 8, self._matrix("scales", *_FLOATS)
        form = self._form(lambda bits: inputs, scales.get_shape()[0])
        groups = _groups(inputs, form)
        self._expect(scales, [groups, outputs])
        zeros = self._matrix("qzeros", "I32")
        self._expect(zeros, [groups, columns])

        def read() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return codes_of_awq(words[...]), scales[...].T.contiguous(), codes_of_awq(zeros[...])

        return self._coded((outputs, inputs), form, scales, read)

    def packed(self) -> CodedTensor:
        """A weight of compressed-tensors in words, one row for each output."""
        words = self._matrix("weight_packed", "I32")
        [outputs, columns] = words.get_shape()
        shape = self._part("weight_shape", "I64", "I32")
        self._expect(shape, [2])
        [rows, inputs] = shape[...].tolist()
        if rows != outputs or not 0 < inputs <= columns * 8:
            raise self._unfit(f"weight_shape is {[rows, inputs]}, which is not what it holds")
        scales = self._part("weight_scale", *_FLOATS)
        form = self._form(lambda bits: inputs, self._columns(scales, outputs))
        self._expect(words, [outputs, words_for(inputs, form.bits)])
        zeros = self._zero_points(form, outputs, inputs)

        def read() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | int]:
            codes = codes_in_rows(words[...], form.bits, inputs)
            return codes, self._by_row(scales, outputs), zeros()

        order = self._order("weight_g_idx", inputs)
        return self._coded((outputs, inputs), form, scales, read, order)

    def of_bytes(self) -> Tensor:
        """A weight with a byte for each value: an integer, or a float of 8 bits."""
        weight = self._matrix("weight", "I8", _FP8)
        if weight.get_dtype() == _FP8:
            return self._fp8(weight)
        outputs, inputs = weight.get_shape()
        scales = self._part("weight_scale", *_FLOATS)
        form = self._form(lambda bits: inputs, self._columns(scales, outputs), bits=8)
        zeros = self._zero_points(form, outputs, inputs)

        def read() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | int]:
            codes = weight[...].view(torch.uint8) ^ 0x80
            return codes, self._by_row(scales, outputs), zeros()

        return self._coded((outputs, inputs), form, scales, read)

    def _fp8(self, weight: StoredTensor) -> WidenedTensor:
        outputs, inputs = weight.get_shape()
        name = "weight_scale_inv" if "weight_scale_inv" in self._parts else "weight_scale"
        scales = self._part(name, *_FLOATS)
        shape, block = scales.get_shape(), self._quantisation.block
        if math.prod(shape) == 1:
            size = outputs, inputs
        elif shape in ([outputs, 1], [outputs]):
            size = 1, inputs
        elif block and shape == [-(-outputs // block[0]), -(-inputs // block[1])]:
            size = block
        else:
            raise self._unfit(f"{name} is {shape}, which does not fit a weight {[outputs, inputs]}")
        rows, columns = torch.arange(outputs) // size[0], torch.arange(inputs) // size[1]

        def read() -> torch.Tensor:
            factors = scales[...].float().view(-(-outputs // size[0]), -1)
            return weight[...].float().mul_(factors[rows][:, columns])

        dtype = "F16" if scales.get_dtype() == "F16" else "BF16"
        return WidenedTensor(self._weight, weight.file, (outputs, inputs), dtype, read)

    @property
    def _weight(self) -> str:
        return f"{self._name}.weight"

    def _coded(
        self,
        shape: tuple[int, int],
        form: Form,
        scales: StoredTensor,
        read: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor | int]],
        order: StoredTensor | None = None,
    ) -> CodedTensor:
        return CodedTensor(self._weight, scales.file, shape, form, scales, order, read)

    def _part(self, part: str, *dtypes: str) -> StoredTensor:
        """A tensor of this module, of one of some dtypes."""
        self.taken.add(part)
        found = self._parts.get(part)
        if found is None:
            raise self._unfit(f"{part} is missing")
        if found.get_dtype() not in dtypes:
            raise self._unfit(f"{part} holds {found.get_dtype()} and not {' or '.join(dtypes)}")
        return found

    def _matrix(self, part: str, *dtypes: str) -> StoredTensor:
        found = self._part(part, *dtypes)
        shape = found.get_shape()
        if len(shape) != 2 or not math.prod(shape):
            raise self._unfit(f"{part} is {short(str(shape))}, which is no matrix")
        return found

    def _order(self, part: str, inputs: int) -> StoredTensor | None:
        if part not in self._parts:
            return None
        found = self._part(part, "I32", "I64")
        self._expect(found, [inputs])
        return found

    def _expect(self, tensor: StoredTensor, shape: list[int]) -> None:
        if tensor.get_shape() != shape:
            stored, part = short(str(tensor.get_shape())), tensor.name.rpartition(".")[2]
            raise self._unfit(f"{part} is {stored} and not {shape}")

    def _form(
        self, inputs_of: Callable[[int], int], num_groups: int, bits: int | None = None
    ) -> Form:
        """The form of the configuration that weights of so many groups have."""
        forms = [each for each in self._quantisation.forms if bits in (None, each.bits)]
        for form in forms:
            inputs = inputs_of(form.bits)
            if num_groups == _groups(inputs, form):
                return form
        told = " or ".join(
            f"{each.bits} bits in groups of {each.group or inputs_of(each.bits)} of "
            f"{inputs_of(each.bits)} inputs"
            for each in forms
        )
        raise self._unfit(
            f"there are {num_groups} scales for each output, which does not fit {told or 'FP8'}"
        )

    def _columns(self, scales: StoredTensor, outputs: int) -> int:
        """Scales of each output; one if all of a weight share a scale."""
        shape = scales.get_shape()
        if math.prod(shape) == 1 or shape == [outputs]:
            return 1
        if len(shape) != 2 or shape[0] != outputs:
            raise self._unfit(f"weight_scale is {short(str(shape))} for {outputs} outputs")
        return shape[1]

    def _by_row(self, scales: StoredTensor, outputs: int) -> torch.Tensor:
        found = scales[...]
        return (found.reshape(-1, 1) if found.dim() < 2 else found).expand(outputs, -1).contiguous()

    def _zero_points(
        self, form: Form, outputs: int, inputs: int
    ) -> Callable[[], torch.Tensor | int]:
        """Reads the codes of the value 0: bytes, or packed in words of outputs."""
        middle, part = 1 << (form.bits - 1), "weight_zero_point"
        if part not in self._parts and form.is_symmetric:
            return lambda: middle
        points = self._part(part, "I8", "I32")
        groups = _groups(inputs, form)
        if points.get_dtype() == "I8":
            if points.get_shape() != [1]:
                self._expect(points, [outputs, groups])
            return lambda: self._bytes(points, middle).expand(outputs, groups).contiguous()
        self._expect(points, [words_for(outputs, form.bits), groups])
        return lambda: codes_in_columns(points[...], form.bits, outputs).T.contiguous()

    def _bytes(self, points: StoredTensor, middle: int) -> torch.Tensor:
        """Zero points that are stored as the differences to the middle of all codes."""
        return (points[...].to(torch.int16) + middle & 2 * middle - 1).to(torch.uint8)

    def _unfit(self, what: str) -> ModelRefused:
        file = next(iter(self._parts.values())).file
        return ModelRefused(f"{file} is not served: of the weight {short(self._name)} {what}.")


def _groups(inputs: int, form: Form) -> int:
    """Groups of a row, of which the last one may have fewer inputs."""
    return -(-inputs // (form.group or inputs))
