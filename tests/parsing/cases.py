"""Written transcripts of every format and their parts; `test_cuts` cuts each of them anywhere."""

from __future__ import annotations

from radixserve.parsing.parts import Part, Reasoning, Text
from tests.parsing.transcripts import Setup, call

HERMES = Setup("hermes")
LLAMA = Setup("llama3_json")
MISTRAL = Setup("mistral")
DEEPSEEK = Setup("deepseek")
THINK = Setup(None, "think")
BOTH = Setup("hermes", "think")

CODER = Setup("qwen3_coder")
GLM = Setup("glm")
PYTHONIC = Setup("llama_pythonic")
HARMONY = Setup("harmony", "harmony")
KIMI = Setup("kimi_k2")
MINIMAX = Setup("minimax_m2")
COHERE = Setup("cohere", "cohere")
LFM = Setup("lfm2")

Case = tuple[Setup, str, list[Part]]

PARIS = '{"city": "Paris"}'
BRACES = r'{"city": "} ] \" </tool_call> <tool_call> {[", "days": 2}'
WEATHER = '{"name": "get_weather", "arguments": ' + PARIS + "}"

HERMES_CASES: dict[str, Case] = {
    "hermes: one call": (
        HERMES,
        f"<tool_call>\n{WEATHER}\n</tool_call>",
        call(0, "get_weather", PARIS),
    ),
    "hermes: text, two calls, text": (
        HERMES,
        f"Let me look.\n\n<tool_call>\n{WEATHER}\n</tool_call>\n"
        '<tool_call>\n{"arguments": {}, "name": "now"}\n</tool_call>\n Done. \n',
        [
            Text("Let me look."),
            *call(0, "get_weather", PARIS),
            *call(1, "now", "{}"),
            Text("Done. \n"),
        ],
    ),
    "hermes: brackets, quotes and tags in strings": (
        HERMES,
        f'<tool_call>{{"name": "get_weather", "arguments": {BRACES}}}</tool_call>',
        call(0, "get_weather", BRACES),
    ),
    "hermes: spacing of the arguments is the model's": (
        HERMES,
        '<tool_call>{"name":"get_weather","arguments":{ "city" :\n"Paris" } }</tool_call>',
        call(0, "get_weather", '{ "city" :\n"Paris" }'),
    ),
    "hermes: arguments before the name": (
        HERMES,
        f'<tool_call>{{"arguments": {BRACES}, "name": "get_weather"}}</tool_call>',
        call(0, "get_weather", BRACES),
    ),
    "hermes: arguments as a string with half of a surrogate pair": (
        HERMES,
        r'<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"\ud83c\ud83c\udf0d\"}"}'
        "</tool_call>",
        call(0, "get_weather", '{"city": "\ufffd\N{EARTH GLOBE EUROPE-AFRICA}"}'),
    ),
    "hermes: arguments as a string": (
        HERMES,
        r'<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"Zürich\"}"}</tool_call>',
        call(0, "get_weather", '{"city": "Zürich"}'),
    ),
    "hermes: no arguments": (
        HERMES,
        '<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "now", "arguments": null}'
        '</tool_call><tool_call>{"name": "now", "arguments": ""}</tool_call>',
        [*call(0, "now", "{}"), *call(1, "now", "{}"), *call(2, "now", "{}")],
    ),
    "hermes: further members": (
        HERMES,
        '<tool_call>{"type": "function", "id": 3, "name": "now", "arguments": {}, "x": [1, "]"]}'
        "</tool_call>",
        call(0, "now", "{}"),
    ),
    "hermes: without the closing tag": (
        HERMES,
        f"<tool_call>{WEATHER}<tool_call>{WEATHER}",
        [*call(0, "get_weather", PARIS), *call(1, "get_weather", PARIS)],
    ),
    "hermes: without the last bracket": (
        HERMES,
        f"<tool_call>{WEATHER[:-1]}</tool_call>",
        call(0, "get_weather", PARIS),
    ),
    "hermes: cut in the tag": (HERMES, "Yes.\n<tool_c", [Text("Yes.\n<tool_c")]),
    "hermes: cut before the name": (
        HERMES,
        '<tool_call>\n{"name": "get_wea',
        [Text('<tool_call>\n{"name": "get_wea')],
    ),
    "hermes: cut in the arguments": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Pa',
        call(0, "get_weather", '{"city": "Pa', ended=False),
    ),
    "hermes: the tag closes open brackets": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"days": [1, 2</tool_call> Well.',
        [*call(0, "get_weather", '{"days": [1, 2'), Text("Well.")],
    ),
    "hermes: values that are no JSON stay the model's": (
        HERMES,
        '<tool_call>{"name": "get_weather", "arguments": {"metric": True,, x}}</tool_call>',
        call(0, "get_weather", '{"metric": True,, x}'),
    ),
    "hermes: an unknown function": (
        HERMES,
        '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>',
        [Text('<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>')],
    ),
    "hermes: unknown, then known": (
        HERMES,
        f'<tool_call>{{"name": "rm"}}</tool_call>\n<tool_call>{WEATHER}</tool_call>',
        [Text('<tool_call>{"name": "rm"}</tool_call>'), *call(0, "get_weather", PARIS)],
    ),
    "hermes: a broken call before a good one": (
        HERMES,
        f"<tool_call> oops <tool_call>{WEATHER}</tool_call>",
        [Text("<tool_call> oops"), *call(0, "get_weather", PARIS)],
    ),
    "hermes: not an object": (
        HERMES,
        "<tool_call>[1]</tool_call>",
        [Text("<tool_call>[1]</tool_call>")],
    ),
    "hermes: arguments that are a list": (
        HERMES,
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        [Text('<tool_call>{"name": "now", "arguments": [1]}</tool_call>')],
    ),
    "hermes: an unknown member": (
        HERMES,
        '<tool_call>{"title": 1, "name": "now"}</tool_call>',
        [Text('<tool_call>{"title": 1, "name": "now"}</tool_call>')],
    ),
    "hermes: no name": (
        HERMES,
        '<tool_call>{"arguments": {}}</tool_call>',
        [Text('<tool_call>{"arguments": {}}</tool_call>')],
    ),
    "hermes: a key without a value": (
        HERMES,
        '<tool_call>{"name": "now", "arguments": {}, "x"}</tool_call>',
        [*call(0, "now", "{}"), Text(', "x"}</tool_call>')],
    ),
    "hermes: a bad escape in the name": (
        HERMES,
        r'<tool_call>{"name": "n\ow"}</tool_call>',
        [Text(r'<tool_call>{"name": "n\ow"}</tool_call>')],
    ),
    "hermes: a lone closing tag": (HERMES, "a </tool_call> b", [Text("a </tool_call> b")]),
    "hermes: no tools are offered": (
        Setup("hermes", tools=()),
        f"<tool_call>{WEATHER}</tool_call>",
        [Text(f"<tool_call>{WEATHER}</tool_call>")],
    ),
    "generic: one call": (
        Setup("generic"),
        f"<tool_call>\n{WEATHER}\n</tool_call>",
        call(0, "get_weather", PARIS),
    ),
}

LLAMA_CALL = WEATHER.replace("arguments", "parameters")

LLAMA_CASES: dict[str, Case] = {
    "llama: one call": (LLAMA, f"\n{LLAMA_CALL}", call(0, "get_weather", PARIS)),
    "llama: behind the tag": (
        LLAMA,
        f"<|python_tag|>{LLAMA_CALL}",
        call(0, "get_weather", PARIS),
    ),
    "llama: several": (
        LLAMA,
        f'{LLAMA_CALL}; {LLAMA_CALL}\n{{"type": "function", "function": "now"}}',
        [
            *call(0, "get_weather", PARIS),
            *call(1, "get_weather", PARIS),
            *call(2, "now", "{}"),
        ],
    ),
    "llama: text after a call": (
        LLAMA,
        f"{LLAMA_CALL}; and so on",
        [*call(0, "get_weather", PARIS), Text("; and so on")],
    ),
    "llama: an answer in JSON": (
        LLAMA,
        ' {"city": "Paris", "name": "now"}',
        [Text(' {"city": "Paris", "name": "now"}')],
    ),
    "llama: an object within text": (LLAMA, f"So: {LLAMA_CALL}", [Text(f"So: {LLAMA_CALL}")]),
    "llama: code behind the tag": (
        LLAMA,
        "<|python_tag|>print(1)",
        [Text("<|python_tag|>print(1)")],
    ),
    "llama: cut": (
        LLAMA,
        '{"name": "get_weather", "parameters": {"city',
        call(0, "get_weather", '{"city', ended=False),
    ),
    "llama: after reasoning": (
        Setup("llama3_json", "think"),
        f"<think>\nHm.\n</think>\n\n{LLAMA_CALL}",
        [Reasoning("Hm."), *call(0, "get_weather", PARIS)],
    ),
}

MISTRAL_CASES: dict[str, Case] = {
    "mistral: a list": (
        MISTRAL,
        f'[TOOL_CALLS] [{WEATHER}, {{"name": "now", "arguments": {{}}}}]',
        [*call(0, "get_weather", PARIS), *call(1, "now", "{}")],
    ),
    "mistral: names and arguments": (
        MISTRAL,
        f"Well, [TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]now[ARGS]{{}}",
        [Text("Well,"), *call(0, "get_weather", PARIS), *call(1, "now", "{}")],
    ),
    "mistral: with an id": (
        MISTRAL,
        f"[TOOL_CALLS]get_weather[CALL_ID]123456789[ARGS]{PARIS}",
        call(0, "get_weather", PARIS),
    ),
    "mistral: without a marker before the arguments": (
        MISTRAL,
        f"[TOOL_CALLS]get_weather{PARIS}",
        call(0, "get_weather", PARIS),
    ),
    "mistral: one object": (MISTRAL, f"[TOOL_CALLS]{WEATHER}", call(0, "get_weather", PARIS)),
    "mistral: an open list": (
        MISTRAL,
        f"[TOOL_CALLS][{WEATHER}, ",
        [*call(0, "get_weather", PARIS), Text(", ")],
    ),
    "mistral: an empty list": (MISTRAL, "[TOOL_CALLS][]", [Text("[TOOL_CALLS][]")]),
    "mistral: an unknown function": (
        MISTRAL,
        "[TOOL_CALLS]rm[ARGS]{}",
        [Text("[TOOL_CALLS]rm[ARGS]{}")],
    ),
    "mistral: no arguments": (
        MISTRAL,
        "[TOOL_CALLS]now[ARGS] what",
        [Text("[TOOL_CALLS]now[ARGS] what")],
    ),
    "mistral: cut": (
        MISTRAL,
        '[TOOL_CALLS]get_weather[ARGS]{"city": "a [TOOL_CALLS]',
        call(0, "get_weather", '{"city": "a [TOOL_CALLS]', ended=False),
    ),
    "mistral: after reasoning": (
        Setup("mistral", "mistral"),
        f"[THINK]Hm.[/THINK]So.[TOOL_CALLS]get_weather[ARGS]{PARIS}",
        [Reasoning("Hm."), Text("So."), *call(0, "get_weather", PARIS)],
    ),
}

_V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
_V31 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
_ALL = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"

DEEPSEEK_CASES: dict[str, Case] = {
    "deepseek: v3": (
        DEEPSEEK,
        "Let me see.\n"
        + _ALL.format(f"{_V3.format('get_weather', BRACES)}\n{_V3.format('now', '{}')}"),
        [Text("Let me see."), *call(0, "get_weather", BRACES), *call(1, "now", "{}")],
    ),
    "deepseek: v3.1": (
        DEEPSEEK,
        _ALL.format(f"{_V31.format('get_weather', BRACES)}{_V31.format('now', '{}')}"),
        [*call(0, "get_weather", BRACES), *call(1, "now", "{}")],
    ),
    "deepseek: without the outer tags": (
        DEEPSEEK,
        _V31.format("get_weather", PARIS),
        call(0, "get_weather", PARIS),
    ),
    "deepseek: the tag closes open brackets": (
        DEEPSEEK,
        _ALL.format(_V31.format("get_weather", '{"days": [')),
        call(0, "get_weather", '{"days": ['),
    ),
    "deepseek: unknown functions": (
        DEEPSEEK,
        _ALL.format(_V31.format("rm", PARIS) + _V3.format("rm", PARIS)),
        [Text(_ALL.format(_V31.format("rm", PARIS) + _V3.format("rm", PARIS)))],
    ),
    "deepseek: an outer tag alone": (
        DEEPSEEK,
        "<｜tool▁calls▁begin｜>\nWell",
        [Text("<｜tool▁calls▁begin｜>\nWell")],
    ),
    "deepseek: after reasoning that the template opened": (
        Setup("deepseek", "think", inside=True),
        "Hm.</think>" + _ALL.format(_V31.format("get_weather", PARIS)),
        [Reasoning("Hm."), *call(0, "get_weather", PARIS)],
    ),
}

REASONING_CASES: dict[str, Case] = {
    "think: apart": (
        THINK,
        "\n<think>\n\nOne.\n\nTwo. \n</think>\n\nThree.\n",
        [Reasoning("One.\n\nTwo."), Text("Three.\n")],
    ),
    "think: the template opened it": (
        Setup(None, "think", inside=True),
        "\nOne.\n</think>\n\nTwo.",
        [Reasoning("One."), Text("Two.")],
    ),
    "think: opened twice": (
        Setup(None, "think", inside=True),
        "\n<think>One.</think>Two.",
        [Reasoning("One."), Text("Two.")],
    ),
    "think: never closed": (THINK, "<think>One. ", [Reasoning("One. ")]),
    "think: the closing tag is cut": (THINK, "<think>One.</thi", [Reasoning("One.</thi")]),
    "think: empty": (THINK, "<think>\n\n</think>\n\nTwo.", [Text("Two.")]),
    "think: two blocks": (
        THINK,
        "<think>One.</think>\n<think>Two.</think>Three.",
        [Reasoning("One.Two."), Text("Three.")],
    ),
    "think: none": (THINK, " Say <think> or </think>.\n", [Text(" Say <think> or </think>.\n")]),
    "think: only the beginning of the tag": (THINK, "\n<thi", [Text("\n<thi")]),
    "think: tags within the answer": (
        THINK,
        "<think>One.</think>Use <think> and </think>.",
        [Reasoning("One."), Text("Use <think> and </think>.")],
    ),
    "think: calls within reasoning are reasoning": (
        BOTH,
        f"<think>I could <tool_call>{WEATHER}</tool_call></think>\n<tool_call>{WEATHER}"
        "</tool_call>",
        [
            Reasoning(f"I could <tool_call>{WEATHER}</tool_call>"),
            *call(0, "get_weather", PARIS),
        ],
    ),
    "cohere: the answer has markers too": (
        Setup(None, "cohere"),
        "<|START_THINKING|>One.<|END_THINKING|>\n<|START_RESPONSE|>Two.<|END_RESPONSE|>",
        [Reasoning("One."), Text("Two.")],
    ),
    "cohere: no reasoning": (
        Setup(None, "cohere"),
        "<|START_RESPONSE|>Two.<|END_RESPONSE|>",
        [Text("Two.")],
    ),
    "seed": (
        Setup(None, "seed"),
        "<seed:think>One.</seed:think>Two.",
        [Reasoning("One."), Text("Two.")],
    ),
    "thinking": (
        Setup(None, "thinking"),
        "<thinking>One.</thinking>Two.",
        [Reasoning("One."), Text("Two.")],
    ),
    "plain": (Setup(), " <think>x</think> <tool_call> ", [Text(" <think>x</think> <tool_call> ")]),
}


def _coder(name: str, *parameters: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


TYPED = [
    ("city", '12\n"<b> </parameter'),
    ("days", " 3 "),
    ("metric", "True"),
    ("where", "{'lat': 1, \"ok\": None}"),
    ("hours", "[1, 2.5]"),
    ("other", "7"),
]
TYPED_JSON = (
    r'{"city": "12\n\"<b> </parameter", "days": 3, "metric": true, '
    '"where": {"lat": 1, "ok": null}, "hours": [1, 2.5], "other": "7"}'
)

CODER_CASES: dict[str, Case] = {
    "coder: values of all types": (
        CODER,
        f"I see.\n\n{_coder('get_weather', *TYPED)}\n",
        [Text("I see."), *call(0, "get_weather", TYPED_JSON)],
    ),
    "coder: two calls": (
        CODER,
        f"{_coder('get_weather', ('city', 'Paris'))}\n{_coder('now')}",
        [*call(0, "get_weather", PARIS), *call(1, "now", "{}")],
    ),
    "coder: without the outer tags": (
        CODER,
        "<function=get_weather><parameter=city>Paris</parameter></function>",
        call(0, "get_weather", PARIS),
    ),
    "coder: other outer tags": (
        CODER,
        "<seed:tool_call><function=now></function></seed:tool_call> Well.",
        [*call(0, "now", "{}"), Text("Well.")],
    ),
    "coder: empty lines of a value are its own": (
        CODER,
        _coder("get_weather", ("city", "\nParis\n")),
        call(0, "get_weather", r'{"city": "\nParis\n"}'),
    ),
    "coder: values that do not fit the schema are strings": (
        CODER,
        _coder("get_weather", ("days", "many"), ("where", "[1]"), ("metric", "NaN")),
        call(0, "get_weather", '{"days": "many", "where": "[1]", "metric": "NaN"}'),
    ),
    "coder: an unknown function": (
        CODER,
        _coder("rm", ("x", "1")),
        [Text(_coder("rm", ("x", "1")))],
    ),
    "coder: no arguments after the name": (
        CODER,
        "<function=now> hm",
        [Text("<function=now> hm")],
    ),
    "coder: text between the arguments": (
        CODER,
        "<function=get_weather><parameter=city>Paris</parameter> hm </function>",
        [*call(0, "get_weather", '{"city": "Paris"'), Text("hm </function>")],
    ),
    "coder: cut in a string": (
        CODER,
        "<function=get_weather><parameter=city>Pa",
        call(0, "get_weather", '{"city": "Pa', ended=False),
    ),
    "coder: cut in a number": (
        CODER,
        "<function=get_weather><parameter=days>1",
        call(0, "get_weather", '{"days": 1', ended=False),
    ),
    "coder: cut between arguments": (
        CODER,
        "<function=get_weather><parameter=days>1</parameter>",
        call(0, "get_weather", '{"days": 1', ended=False),
    ),
}


def _glm(name: str, *parameters: tuple[str, str]) -> str:
    inner = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in parameters
    )
    return f"<tool_call>{name}\n{inner}</tool_call>"


GLM_CASES: dict[str, Case] = {
    "glm: values of all types": (
        GLM,
        f"I see.\n{_glm('get_weather', *TYPED)}",
        [Text("I see."), *call(0, "get_weather", TYPED_JSON)],
    ),
    "glm: two calls": (
        GLM,
        f"{_glm('get_weather', ('city', 'Paris'))}\n{_glm('now')}\nDone.",
        [*call(0, "get_weather", PARIS), *call(1, "now", "{}"), Text("Done.")],
    ),
    "glm: on one line": (
        GLM,
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        call(0, "get_weather", PARIS),
    ),
    "glm: an unknown function": (GLM, _glm("rm", ("x", "1")), [Text(_glm("rm", ("x", "1")))]),
    "glm: a key without a value": (
        GLM,
        "<tool_call>get_weather<arg_key>city</arg_key></tool_call>",
        [Text("<tool_call>get_weather<arg_key>city</arg_key></tool_call>")],
    ),
    "glm: the second key without a value": (
        GLM,
        _glm("get_weather", ("city", "Paris"))[:-12] + "<arg_key>days</tool_call>",
        [
            *call(0, "get_weather", '{"city": "Paris"', ended=False),
            Text("<arg_key>days</tool_call>"),
        ],
    ),
    "glm: cut in a string": (
        GLM,
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Pa",
        call(0, "get_weather", '{"city": "Pa', ended=False),
    ),
    "glm: after reasoning": (
        Setup("glm", "think"),
        f"\n<think>Hm.</think>\n{_glm('now')}",
        [Reasoning("Hm."), *call(0, "now", "{}")],
    ),
}

PYTHONIC_CASES: dict[str, Case] = {
    "pythonic: several calls": (
        PYTHONIC,
        "[get_weather(city='Paris', days=3), now()]",
        [*call(0, "get_weather", '{"city": "Paris", "days": 3}'), *call(1, "now", "{}")],
    ),
    "pythonic: between markers": (
        PYTHONIC,
        'Yes. <|python_start|>[ get_weather( city = "Paris" , ) ]<|python_end|>',
        [Text("Yes."), *call(0, "get_weather", PARIS)],
    ),
    "pythonic: every literal": (
        PYTHONIC,
        "[get_weather(a=[1, -2.5e3, 1_000, 0x10, .5,], b={'x': (True, None), 2: false}, "
        r"""c='\'"\n\x41\u00fc\d\
)]', d="", e={}, f='\ud83d\ude00')]""",
        call(
            0,
            "get_weather",
            '{"a": [1, -2.5e3, 1000, 16, 0.5], "b": {"x": [true, null], "2": false}, '
            r'"c": "' + r"""'\"\nA\u00fc\\d)]", "d": "", "e": {}, "f": "\ud83d\ude00"}""",
        ),
    ),
    "pythonic: code is no literal": (
        PYTHONIC,
        "[get_weather(city=open('x'))]",
        [*call(0, "get_weather", '{"city": open'), Text("('x'))]")],
    ),
    "pythonic: an unknown function": (PYTHONIC, "[rm(x=1)]", [Text("[rm(x=1)]")]),
    "pythonic: a list": (PYTHONIC, "\n[1, 2]", [Text("\n[1, 2]")]),
    "pythonic: a link": (PYTHONIC, "[now](http://x)", [Text("[now](http://x)")]),
    "pythonic: without a key": (PYTHONIC, "[now('x')]", [Text("[now('x')]")]),
    "pythonic: a list within text": (PYTHONIC, "So: [now()]", [Text("So: [now()]")]),
    "pythonic: cut": (
        PYTHONIC,
        "[get_weather(city='Pa",
        call(0, "get_weather", '{"city": "Pa', ended=False),
    ),
    "pythonic: cut between arguments": (
        PYTHONIC,
        "[get_weather(city='Paris', da",
        [*call(0, "get_weather", '{"city": "Paris"', ended=False), Text(", da")],
    ),
}

_CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"

HARMONY_CASES: dict[str, Case] = {
    "harmony: reasoning and text": (
        HARMONY,
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Two.<|return|>",
        [Reasoning("One."), Text("Two.")],
    ),
    "harmony: the end is not shown": (
        HARMONY,
        "<|channel|>final<|message|>Two.\n",
        [Text("Two.\n")],
    ),
    "harmony: the prompt opened the reasoning": (
        Setup("harmony", "harmony", inside=True),
        "One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Three.",
        [Reasoning("One.Two."), Text("Three.")],
    ),
    "harmony: reasoning, preamble and two calls": (
        HARMONY,
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant"
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
        + _CALL.format("get_weather", BRACES)
        + "<|start|>assistant"
        + _CALL.format("now", "{}"),
        [
            Reasoning("One."),
            Text("Let me see."),
            *call(0, "get_weather", BRACES),
            *call(1, "now", "{}"),
        ],
    ),
    "harmony: the recipient before the channel": (
        HARMONY,
        " to=functions.get_weather<|channel|>commentary json<|message|>" + PARIS,
        call(0, "get_weather", PARIS),
    ),
    "harmony: an unknown function": (
        HARMONY,
        _CALL.format("rm", "{}"),
        [Text(_CALL.format("rm", "{}"))],
    ),
    "harmony: no tools are offered": (
        Setup("harmony", "harmony", tools=()),
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Two.",
        [Reasoning("One."), Text("Two.")],
    ),
    "harmony: arguments that are no object": (
        HARMONY,
        _CALL.format("now", "what"),
        [Text(_CALL.format("now", "what"))],
    ),
    "harmony: a header without a message": (
        HARMONY,
        "<|channel|>final<|end|>x",
        [Text("<|channel|>final<|end|>x")],
    ),
    "harmony: text without a channel": (HARMONY, " Hello. ", [Text(" Hello. ")]),
    "harmony: cut in the header": (
        HARMONY,
        "<|channel|>commentary to=func",
        [Text("<|channel|>commentary to=func")],
    ),
    "harmony: cut in the arguments": (
        HARMONY,
        _CALL.format("get_weather", '{"city": "Pa')[:-8],
        call(0, "get_weather", '{"city": "Pa', ended=False),
    ),
}


def _kimi(own_id: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{own_id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


_KIMI = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
KIMI_CASES: dict[str, Case] = {
    "kimi: text, two calls, text": (
        KIMI,
        "Let me look. "
        + _KIMI.format(_kimi("functions.get_weather:0", BRACES) + _kimi("functions.now:1", "{}"))
        + "Done.",
        [
            Text("Let me look."),
            *call(0, "get_weather", BRACES),
            *call(1, "now", "{}"),
            Text("Done."),
        ],
    ),
    "kimi: spaces, no section, no kind and no number": (
        KIMI,
        "<|tool_call_begin|> now \n<|tool_call_argument_begin|> {} <|tool_call_end|>",
        call(0, "now", "{}"),
    ),
    "kimi: an unknown function": (
        KIMI,
        _KIMI.format(_kimi("functions.rm:0", "{}")),
        [Text(_KIMI.format(_kimi("functions.rm:0", "{}")))],
    ),
    "kimi: an id of nothing": (
        KIMI,
        _KIMI.format(_kimi("", "{}")),
        [Text(_KIMI.format(_kimi("", "{}")))],
    ),
    "kimi: arguments that are no object": (
        KIMI,
        _kimi("functions.now:0", "[1]"),
        [Text(_kimi("functions.now:0", "[1]"))],
    ),
    "kimi: cut in the arguments": (
        KIMI,
        _KIMI.format(_kimi("functions.get_weather:0", PARIS)).split("is")[0],
        call(0, "get_weather", '{"city": "Par', ended=False),
    ),
}


def _minimax(name: str, *arguments: tuple[str, str]) -> str:
    inner = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in arguments)
    return f'<invoke name="{name}">\n{inner}</invoke>\n'


_MINIMAX = "<minimax:tool_call>\n{}</minimax:tool_call>"
MINIMAX_CASES: dict[str, Case] = {
    "minimax: values of all types": (
        MINIMAX,
        f"I see.\n{_MINIMAX.format(_minimax('get_weather', *TYPED))}",
        [Text("I see."), *call(0, "get_weather", TYPED_JSON)],
    ),
    "minimax: two calls, text": (
        MINIMAX,
        _MINIMAX.format(_minimax("get_weather", ("city", "Paris")) + _minimax("now")) + "\nDone.",
        [*call(0, "get_weather", PARIS), *call(1, "now", "{}"), Text("Done.")],
    ),
    "minimax: an unknown function behind a call": (
        MINIMAX,
        _MINIMAX.format(_minimax("now") + _minimax("rm")),
        [
            *call(0, "now", "{}"),
            Text('<invoke name="rm">\n</invoke>\n</minimax:tool_call>'),
        ],
    ),
    "minimax: without the closing tag": (
        MINIMAX,
        f"<minimax:tool_call>{_minimax('now')}Done.",
        [*call(0, "now", "{}"), Text("Done.")],
    ),
    "minimax: a parameter without a name": (
        MINIMAX,
        "<minimax:tool_call><invoke name=now>",
        [Text("<minimax:tool_call><invoke name=now>")],
    ),
    "minimax: cut in a string": (
        MINIMAX,
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Pa',
        call(0, "get_weather", '{"city": "Pa', ended=False),
    ),
}

_COHERE = '{"tool_call_id": "0", "tool_name": "get_weather", "parameters": ' + BRACES + "}"
_NOW = '{"tool_name": "now", "parameters": {}, "tool_call_id": "1"}'
COHERE_CASES: dict[str, Case] = {
    "cohere: reasoning, two calls": (
        COHERE,
        f"<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {_COHERE},\n    {_NOW}\n]"
        "<|END_ACTION|>",
        [Reasoning("Hm."), *call(0, "get_weather", BRACES), *call(1, "now", "{}")],
    ),
    "cohere: a response": (
        COHERE,
        "<|START_RESPONSE|>It rains.<|END_RESPONSE|>",
        [Text("It rains.")],
    ),
    "cohere: one call without a list": (
        COHERE,
        f"<|START_ACTION|>{_NOW}<|END_ACTION|>",
        call(0, "now", "{}"),
    ),
    "cohere: no call": (
        COHERE,
        '<|START_ACTION|>[\n    {"tool_name": "rm"}]<|END_ACTION|>',
        [Text('<|START_ACTION|>[\n    {"tool_name": "rm"}]<|END_ACTION|>')],
    ),
    "cohere: cut": (
        COHERE,
        '<|START_ACTION|>[{"tool_name": "get_weather", "parameters": {"city": "Par',
        call(0, "get_weather", '{"city": "Par', ended=False),
    ),
}

LFM_CASES: dict[str, Case] = {
    "lfm: text, two calls, text": (
        LFM,
        "Yes.\n<|tool_call_start|>[get_weather(city='Paris', days=3), now()]<|tool_call_end|>Done.",
        [
            Text("Yes."),
            *call(0, "get_weather", '{"city": "Paris", "days": 3}'),
            *call(1, "now", "{}"),
            Text("Done."),
        ],
    ),
    "lfm: the end in a string": (
        LFM,
        "<|tool_call_start|>[get_weather(city='<|tool_call_end|>')]<|tool_call_end|>",
        call(0, "get_weather", '{"city": "<|tool_call_end|>"}'),
    ),
    "lfm: objects": (
        LFM,
        f'<|tool_call_start|>[{WEATHER}, {{"name": "now", "arguments": {{}}, "id": "x"}}]'
        "<|tool_call_end|>",
        [*call(0, "get_weather", PARIS), *call(1, "now", "{}")],
    ),
    "lfm: calls need their marker": (LFM, "[now()]", [Text("[now()]")]),
    "lfm: an unknown function": (
        LFM,
        "<|tool_call_start|>[rm()]<|tool_call_end|>",
        [Text("<|tool_call_start|>[rm()]<|tool_call_end|>")],
    ),
    "lfm: cut": (
        LFM,
        "<|tool_call_start|>[get_weather(city='Pa",
        call(0, "get_weather", '{"city": "Pa', ended=False),
    ),
}

CASES: dict[str, Case] = {
    **HERMES_CASES,
    **LLAMA_CASES,
    **MISTRAL_CASES,
    **DEEPSEEK_CASES,
    **CODER_CASES,
    **GLM_CASES,
    **PYTHONIC_CASES,
    **HARMONY_CASES,
    **KIMI_CASES,
    **MINIMAX_CASES,
    **COHERE_CASES,
    **LFM_CASES,
    **REASONING_CASES,
}
