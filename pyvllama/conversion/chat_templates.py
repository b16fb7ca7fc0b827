"""The chat template of a checkpoint: found where transformers finds it, and carried as it is.

One exception. The template that Llama 3.2 Vision was published with (September 2024) refuses a system prompt where
there are images; the Hub's was corrected in December 2024, and many fine-tunes still carry the old one. It gets the
same correction: a system prompt, where there is one, is written before images too. What the old template renders stays
as it was, but for an explicitly empty system prompt beside images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = [
    "TEMPLATE_FILES",
    "Files",
    "NotedFiles",
    "corrected",
    "corrected_with_note",
    "read_chat_templates",
    "templates_in",
]

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Where a template may be; the first one counts, as for transformers."""

_REFUSAL = "Prompting with images is incompatible with system messages"
_NOTE = (
    "the chat template is the old one of Llama 3.2 Vision, which refuses system prompts beside images; "
    "it is replaced by the corrected one (the Hub's since December 2024)"
)

_EMPTY = r"(?:\"\"|'')"

# The three places at which the corrected template differs. Comments and spaces may: templates get reformatted.
_EDITS = (
    # the refusal itself
    (
        r"(?:{#-?\s*Error out if there are images and system message\s*-?#}\s*)?"
        rf"{{%-?\s*if image_ns\.has_images and not system_message == {_EMPTY}\s*-?%}}\s*"
        rf"{{{{-?\s*raise_exception\([\"']{_REFUSAL}\.?[\"']\)\s*-?}}}}\s*{{%-?\s*endif\s*-?%}}\s*",
        "",
    ),
    # whether there is a system prompt
    (
        r"((?<![ \t])[ \t]*)({%-?\s*set messages = messages\[1:\]\s*-?%})"
        rf"(\s*{{%-?\s*else\s*-?%}}\s*{{%-?\s*set system_message = {_EMPTY}\s*-?%}})",
        r"\g<1>\g<2>\n\g<1>{%- set user_supplied_system_message = true %}"
        r"\g<3>\n\g<1>{%- set user_supplied_system_message = false %}",
    ),
    # where it is written
    (
        r"(?:({#-?\s*System message if there are no images)\s*(-?#}\s*))?({%-?\s*if) not image_ns\.has_images",
        lambda m: (
            (f"{m[1]}, or if the user supplied one {m[2]}" if m[1] else "")
            + f"{m[3]} user_supplied_system_message or not image_ns.has_images"
        ),
    ),
)


class Files(Protocol):
    """A directory, or what stands for one."""

    def optional_text(self, name: str) -> str | None:
        """A text file, or None."""

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file, or None."""


class NotedFiles(Files, Protocol):
    """A checkpoint."""

    notes: list[str]


def read_chat_templates(checkpoint: NotedFiles) -> dict[str, str]:
    """Name -> Jinja source; the one to use is 'default'. Empty where the checkpoint has none.

    A replaced template is noted in the checkpoint's `notes`.
    """
    found = templates_in(checkpoint)
    if not found:
        checkpoint.notes.append("there is no chat template; a base (--base) can bring one")
    return {name: corrected_with_note(source, checkpoint.notes) for name, source in found.items()}


def corrected_with_note(source: str, notes: list[str]) -> str:
    """The template as it is to be used; what is done to the old one, or cannot be, is added to the notes."""
    if _REFUSAL not in source:
        return source
    if (better := corrected(source)) is None:
        notes.append(
            "the chat template refuses system prompts beside images, and is not the one whose correction is known: it "
            "is kept"
        )
        return source
    notes.append(_NOTE)
    return better


def templates_in(files: Files, names: Sequence[str] = TEMPLATE_FILES) -> dict[str, str]:
    """The templates of the first file that has any: name -> Jinja source, one of them 'default'; or nothing."""
    for name in names:
        if name.endswith(".jinja"):
            if source := files.optional_text(name):
                return {"default": source}
            continue
        found = (files.optional_json(name) or {}).get("chat_template")
        if isinstance(found, str) and found:
            return {"default": found}
        if isinstance(found, list):  # several named ones
            named = {
                t["name"]: t["template"]
                for t in found
                if isinstance(t, dict) and isinstance(t.get("name"), str) and isinstance(t.get("template"), str)
            }
            if "default" in named:
                return named
    return {}


def corrected(source: str) -> str | None:
    """The old template of Llama 3.2 Vision with the Hub's correction of December 2024; None for any other template."""
    for pattern, replacement in _EDITS:
        source, n = re.subn(pattern, replacement, source)
        if n != 1:
            return None
    return None if _REFUSAL in source else source
