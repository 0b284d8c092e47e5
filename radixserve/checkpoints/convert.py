"""Makes a transformers folder of a GGUF file: configuration, tokenizer, chat template, generation
config, and the weights.

Run as a child process: `python -m radixserve.checkpoints.convert SOURCE.gguf FOLDER WEIGHTS`. With
LINKED the folder gets a link to the GGUF file, from which the engine reads the weights
(`gguf_file`), and takes a few MB; with WHOLE they are converted to float32 safetensors; with
FITTING they are linked if they can be served as codes. Reports stages on stderr as lines that start
with "convert: ". If the folder has no room for the weights, or cannot be written, the exit status
is 3 and the last line is a sentence. Does not know where models are kept; `converted` publishes the
result.
"""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import torch
from gguf import GGUFReader
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from radixserve.checkpoints.converted import FITTING, LINKED, NO_ROOM
from radixserve.checkpoints.gguf_file import GGUF_FILE
from radixserve.checkpoints.gguf_header import read_header
from radixserve.checkpoints.gguf_model import forget_quantisation, keeps_codes

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


class NoRoom(Exception):
    """The folder is too small for the weights."""


def convert(source: Path, target: Path, weights: str) -> None:
    """Write the model in `source` to the folder `target`. Takes some seconds and, unless the
    weights are linked, 5 bytes of memory per parameter.

    Raises:
        ModelRefused: the file is damaged, or has tensors of a type that is not supported.
    """
    fits = keeps_codes(read_header(source).architecture)
    where = {
        "pretrained_model_name_or_path": str(source.parent),
        "gguf_file": source.name,
        "local_files_only": True,
    }
    _say("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.save_pretrained(target)
    generation = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if weights == LINKED or (weights == FITTING and fits):
        generation.save_pretrained(target)
        AutoConfig.from_pretrained(**where).save_pretrained(target)
        (target / GGUF_FILE).symlink_to(source.absolute())
        return
    _check_room(source, target)
    _say("dequantising the weights")
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    forget_quantisation(model)
    _say("writing safetensors")
    model.generation_config = generation
    model.save_pretrained(target)


def _say(stage: str) -> None:
    print(f"convert: {stage}", file=sys.stderr, flush=True)


def _check_room(source: Path, target: Path) -> None:
    """Raises NoRoom unless `target` has room for the weights as float32."""
    needed = 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(source).tensors)
    free = shutil.disk_usage(target).free
    if free < needed:
        raise NoRoom(f"{target} has {free >> 20} MiB free, {needed >> 20} MiB are needed")


def main(source: Path, target: Path, weights: str) -> int:
    """The entry point of the child process. Returns its exit code."""
    try:
        convert(source, target, weights)
    except Exception as error:  # of the libraries that read and write the files
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not _is_about_room(error):
            print(words, file=sys.stderr)
            return 1
        print(words if str(target) in words else f"{target}: {words}", file=sys.stderr)
        return NO_ROOM
    return 0


def _is_about_room(error: Exception) -> bool:
    """Whether another folder may work. safetensors reports errors of the system as text only."""
    if isinstance(error, SafetensorError):
        return "os error" in str(error)
    return isinstance(error, NoRoom) or (isinstance(error, OSError) and error.errno in _NO_ROOM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
