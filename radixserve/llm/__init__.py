"""The Python interface: the server's engine and tokenizer without HTTP."""

from radixserve.llm.async_llm import AsyncLLM
from radixserve.llm.output import Completion, Output, ToolCall
from radixserve.llm.params import SamplingParams
from radixserve.llm.sync_llm import LLM

__all__ = ["LLM", "AsyncLLM", "Completion", "Output", "SamplingParams", "ToolCall"]
