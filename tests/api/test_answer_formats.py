"""Which formats a server reads, and what its log says of one that it does not know."""

from __future__ import annotations

import pytest

from radixserve.api.answer_formats import AnswerFormats
from tests.fakes import byte_tokenizer

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
TOOLS = "{{ tools | tojson }}" + PLAIN


@pytest.mark.parametrize(
    ("template", "tool_parser", "name", "warns"),
    [
        (PLAIN, "auto", "generic", False),
        (TOOLS + "{# <tool_call> #}", "auto", "hermes", False),
        (TOOLS, "auto", "generic", True),
        (TOOLS, "mistral", "mistral", False),
    ],
)
def test_a_format_that_is_not_known_is_warned_of(
    template: str,
    tool_parser: str,
    name: str,
    warns: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    formats = AnswerFormats.of(byte_tokenizer(chat_template=template), tool_parser)
    assert formats.tools.name == name
    assert ("is not known" in caplog.text) == warns
