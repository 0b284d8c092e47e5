"""Small chat templates of the kinds that models with tools have, and a tokenizer for each.

Each has the structure of its kind: where tools stand, how calls and results are written, which
tokens are special.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from radixserve.text.tokenizer import Tokenizer
from tests.text.conftest import load_saved

# Tools as JSON lines in the system turn; calls as JSON between tags; results in a turn of the user.
HERMES = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools><|im_end|>
{%- elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
<|im_start|>user
{%- endif %}
<tool_response>
{{ message.content }}
</tool_response>
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>{% endif %}
{%- elif message.role != 'system' %}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and '</think>' in message.content %}
{{- message.content.split('</think>')[-1].lstrip() }}
{%- else %}
{{- message.content }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}
{%- endif %}"""

# Tools, indented, in the first user's turn; one call in each turn, alone in it.
LLAMA = """\
{{- bos_token }}
{%- macro turn(role) %}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- turn('ipython') }}{{ message.content | tojson }}<|eot_id|>
{%- elif message.tool_calls %}
{%- if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{{- turn('assistant') }}{"name": "{{ message.tool_calls[0].function.name }}", "parameters": \
{{ message.tool_calls[0].function.arguments | tojson }}}<|eom_id|>
{%- else %}
{{- turn(message.role) }}
{%- if tools and message.role == 'user' and loop.index0 < 2 %}Answer with a call of:

{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}
{%- endif %}
{{- message.content | trim }}<|eot_id|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ turn('assistant') }}{% endif %}"""

# Tools before the last message of the user; ids of nine characters; arguments as text.
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.index0 == (messages | length) - 1 %}[AVAILABLE_TOOLS] \
{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ message.content }}[/INST]
{%- elif message.tool_calls %}[TOOL_CALLS] [
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments }}, \
"id": "{{ call.id }}"}
{%- if not loop.last %}, {% endif %}
{%- endfor %}]{{ eos_token }}
{%- elif message.role == 'tool' %}[TOOL_RESULTS] {"content": {{ message.content | tojson }}, \
"call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]
{%- elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}
{%- else %}{{ raise_exception('only user, assistant and tool') }}
{%- endif %}
{%- endfor %}"""

# Names of functions and parameters within tags, as text; JSON in ASCII.
XML = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}<function>
<name>{{ tool.function.name }}</name>
{%- for key, value in tool.function.parameters.properties | items %}
<{{ key }}>{{ value | tojson(ensure_ascii=true) }}</{{ key }}>
{%- endfor %}
</function>
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call><function={{ call.function.name }}>
{%- for key, value in call.function.arguments | items %}
<parameter={{ key }}>{{ value if value is string else value | tojson }}</parameter>
{%- endfor %}</function></tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""

TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
THINK = ("<think>", "</think>")
SPECIAL = {
    "hermes": (),
    "xml": (),
    "llama": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (
        *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
        *("[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    ),
}
TEMPLATES = {"hermes": HERMES, "llama": LLAMA, "mistral": MISTRAL, "xml": XML}
CONFIG: dict[str, dict[str, Any]] = {
    "llama": {"bos_token": "<|begin_of_text|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
}


def tokenizer_of(kind: str, smollm2: Tokenizer, folder: Path) -> Tokenizer:
    """The embedded model's tokenizer with the template and the control tokens of `kind`."""
    backend = tokenizers.Tokenizer.from_str(smollm2._backend.to_str())
    backend.add_special_tokens(list(SPECIAL[kind]) + (["<|eom_id|>"] if kind == "llama" else []))
    plain = (*TAGS, *THINK) if kind in ("hermes", "xml") else ()
    backend.add_tokens([AddedToken(each, special=False, normalized=False) for each in plain])
    return load_saved(backend, folder, chat_template=TEMPLATES[kind], **CONFIG.get(kind, {}))
