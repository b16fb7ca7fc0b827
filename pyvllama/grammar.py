"""What an answer may look like: JSON, a JSON schema, a grammar, a tool call; as llama.cpp's grammars (GBNF)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyvllama._runtime import llama_cpp
from pyvllama.errors import ConfigError

__all__ = ["Constraint", "choose_constraint", "constraint_of_format", "constraint_of_grammar", "constraint_of_tools"]

_MAX_GRAMMAR_CHARS = 1 << 20
_MOST = {"(": 4000, "::=": 10_000}
"""Of groups and of rules: llama.cpp reads both by recursion, and some ten thousand groups, one in another, or eighty
thousand rules, each naming the next, end the process."""
_CALL_START = r"^\s*(\{[\s\S]*)"
"""Where a tool may be called but need not: an answer that begins like a JSON object is held to be a call."""


@dataclass(frozen=True)
class Constraint:
    """A grammar in GBNF; its first rule is `root`.

    Attributes:
        grammar: the text.
        trigger: regular expression of llama.cpp's; the grammar holds from its first group on, once an answer matches
            it. None: from the start.
    """

    grammar: str
    trigger: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether the grammar is llama-cpp-python's, of any JSON, and not what somebody asked for."""
        return bool(self.grammar == llama_cpp.llama_grammar.JSON_GBNF)


def constraint_of_grammar(grammar: str | None) -> Constraint | None:
    """A grammar that the user has written.

    Raises:
        ConfigError: it is no text, or far too long. (Whether it is a grammar, the sampler finds out.)
    """
    if grammar is None:
        return None
    if not isinstance(grammar, str) or not grammar.strip():
        raise ConfigError(f"grammar must be a text in GBNF, not {grammar!r:.80}")
    for mark, most in _MOST.items():
        if (n := grammar.count(mark)) > most:
            raise ConfigError(f"grammar has {mark!r} {n} times, more than {most}")
    return Constraint(_checked(grammar))


def constraint_of_format(response_format: Mapping[str, Any] | None) -> Constraint | None:
    """OpenAI's `response_format`: `text`, `json_object` or `json_schema`.

    llama-server's spelling is taken too: `{"type": "json_object", "schema": {...}}`.

    Raises:
        ConfigError: an unknown type, or a schema that cannot be made a grammar.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise ConfigError(f"response_format must be an object with a type, not {response_format!r:.80}")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object" and "schema" not in response_format:
        return Constraint(_checked(llama_cpp.llama_grammar.JSON_GBNF))
    if kind == "json_object":
        return Constraint(schema_grammar(response_format["schema"], "response_format.schema"))
    if kind == "json_schema":
        outer = response_format.get("json_schema")
        if not isinstance(outer, Mapping) or "schema" not in outer:
            raise ConfigError('response_format of type json_schema needs {"json_schema": {"schema": {...}}}')
        return Constraint(schema_grammar(outer["schema"], "response_format.json_schema.schema"))
    raise ConfigError(f"response_format.type is {kind!r}: expected text, json_object or json_schema")


def constraint_of_tools(tools: Sequence[Mapping[str, Any]] | None, tool_choice: Any) -> Constraint | None:
    """A grammar that makes tool calls well-formed: `{"name": NAME, "parameters": {...}}`, Llama 3.1's form.

    Args:
        tools: OpenAI's function descriptions.
        tool_choice: "none": no constraint; "auto" or None: what begins like a call must be one; "required": it must be
            a call; `{"type": "function", "function": {"name": NAME}}`: of that function.

    Raises:
        ConfigError: tool_choice names no tool or is none of these, or a parameter schema cannot be made a grammar.
    """
    if not tools or tool_choice == "none":
        if tool_choice not in (None, "none", "auto"):
            raise ConfigError("tool_choice was given, but there are no tools")
        return None
    functions = [_function(tool, i) for i, tool in enumerate(tools)]
    trigger = _CALL_START if tool_choice in (None, "auto") else None
    if isinstance(tool_choice, Mapping):
        wanted = (tool_choice.get("function") or {}).get("name")
        functions = [f for f in functions if f["name"] == wanted]
        if not functions:
            raise ConfigError(f"tool_choice names the function {wanted!r}, which is not among the tools")
    elif tool_choice not in (None, "auto", "required"):
        raise ConfigError(f"tool_choice is {tool_choice!r}: expected none, auto, required, or a function of the tools")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": f["name"]}, "parameters": f.get("parameters") or {"type": "object"}},
            "required": ["name", "parameters"],
        }
        for f in functions
    ]
    return Constraint(schema_grammar(calls[0] if len(calls) == 1 else {"anyOf": calls}, "tools"), trigger)


def choose_constraint(
    grammar: str | None,
    response_format: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: Any,
) -> Constraint | None:
    """The one constraint of a request.

    Raises:
        ConfigError: several were asked for at once, or one is wrong.
    """
    found = {
        "grammar": constraint_of_grammar(grammar),
        "response_format": constraint_of_format(response_format),
        "tools": constraint_of_tools(tools, tool_choice),
    }
    given = [name for name, constraint in found.items() if constraint is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} were given; an answer can have one of them")
    return found[given[0]] if given else None


def schema_grammar(schema: Any, where: str) -> str:
    """GBNF of a JSON schema, by llama-cpp-python's converter.

    Raises:
        ConfigError: it is no JSON schema that the converter understands.
    """
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{where} must be a JSON schema, an object, not {schema!r:.80}")
    try:
        text = json.dumps(schema)
        return _checked(llama_cpp.llama_grammar.json_schema_to_gbnf(text))
    except ConfigError:
        raise
    except Exception as e:  # the converter has no exceptions of its own
        raise ConfigError(f"{where} cannot be made a grammar: {type(e).__name__}: {e}") from e


def _function(tool: Mapping[str, Any], i: int) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(f'tools[{i}] must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}')
    return function


def _checked(grammar: str) -> str:
    if len(grammar) > _MAX_GRAMMAR_CHARS:
        raise ConfigError(f"the grammar has {len(grammar)} characters, more than {_MAX_GRAMMAR_CHARS}")
    return grammar
