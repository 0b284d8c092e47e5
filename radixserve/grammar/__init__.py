"""Grammars that constrain which tokens may be drawn: checking, compiling, matching.

A `Grammar` (in `radixserve.request`) describes the whole output. Its kind says how the source is
read:

    json_object   any JSON object; no source
    json_schema   a JSON Schema of draft 2020-12, as JSON text (`grammar.schema`)
    regex         a regular expression in the syntax of Rust's regex crate, matched against all of
                  the output; without look-around and back-references
    choice        a JSON array of strings, one of which is the output
    lark          a context-free grammar in the Lark dialect of llguidance, whose first rule is
                  `start`; `<name>` is a control token, `"<name>"` is text that looks like one,
                  `%json {...}` is a schema; of `%json_line {...}` the JSON is written as
                  `json.dumps` writes it; `%json_string {"lark": ...}` is a JSON string whose text
                  matches another grammar, `%text_until {"lark": ..., "end": ...}` such a text with
                  a tag behind it (`grammar.quoted_lark`)
    gbnf          a context-free grammar as llama.cpp writes it, whose first rule is `root`

`grammar.calls` writes the lark sources that tool calls need. The library llguidance compiles and
matches. Knows tokens as bytes, and neither requests nor HTTP nor the model.
"""

from radixserve.grammar.compiled import Compiled, Matcher, check, compile_grammar
from radixserve.grammar.vocabulary import Vocabulary

__all__ = ["Compiled", "Matcher", "Vocabulary", "check", "compile_grammar"]
