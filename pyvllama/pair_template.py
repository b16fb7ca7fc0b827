"""Which of a pair's chat templates is the one to use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyvllama.errors import FormatError, PromptError
from pyvllama.template import ChatTemplate
from pyvllama.tokenizer import Tokenizer

__all__ = ["pair_template"]


def pair_template(
    text: tuple[Path, Mapping[str, Any]],
    mmproj: tuple[Path, Mapping[str, Any]],
    tokenizer: Tokenizer,
) -> ChatTemplate:
    """The chat template of a text file and its mmproj.

    Args:
        text: the text file and its metadata.
        mmproj: the mmproj file and its metadata.
        tokenizer: the text file's vocabulary.

    Raises:
        FormatError: neither file holds one, or it is no valid template.
    """
    # A grafted text model speaks as its own template has it, with images or without (see `build_prompt`).
    own = text[1].get("tokenizer.chat_template", "")
    source = own or mmproj[1].get("clip.mllama.chat_template", "")
    if not source:
        raise FormatError(f"{text[0]} and {mmproj[0]}: neither holds a chat template")
    special = {token: written for written, token in tokenizer.special_tokens.items()}
    bos, eos = tokenizer.bos, tokenizer.eos
    try:
        return ChatTemplate(
            source,
            bos_token=special.get(bos, "") if bos is not None else "",
            eos_token=special.get(eos, "") if eos is not None else "",
        )
    except PromptError as e:
        raise FormatError(f"{text[0] if source is own else mmproj[0]}: {e}") from e
