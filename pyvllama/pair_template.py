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
    image_token: int,
) -> ChatTemplate:
    """The chat template of a text file and its mmproj.

    Args:
        text: the text file and its metadata.
        mmproj: the mmproj file and its metadata.
        tokenizer: the text file's vocabulary.
        image_token: the token that stands for an image.

    Raises:
        FormatError: neither file holds one, or it is no valid template.
    """
    # A grafted text model's own template knows no images; the mmproj brings the one it was trained with.
    own = text[1].get("tokenizer.chat_template", "")
    source = own if image_token < tokenizer.n_tokens and own else ""
    source = source or mmproj[1].get("clip.mllama.chat_template", "") or own
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
