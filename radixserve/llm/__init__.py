"""The Python interface: the server's engine and tokenizer without HTTP."""

from radixserve.front.stream import Delta
from radixserve.llm.async_llm import AsyncLLM
from radixserve.llm.output import Completion, Output, ToolCall
from radixserve.llm.params import SamplingParams
from radixserve.llm.sync_llm import LLM
from radixserve.parsing.parts import CallArguments, CallBegun, CallEnded, Reasoning, Text
from radixserve.step import TokenLogprob

__all__ = [
    "LLM",
    "AsyncLLM",
    "CallArguments",
    "CallBegun",
    "CallEnded",
    "Completion",
    "Delta",
    "Output",
    "Reasoning",
    "SamplingParams",
    "Text",
    "TokenLogprob",
    "ToolCall",
]
