"""Vocabularies of other sizes than the model's makers gave it.

Llama 3.2 Vision's embedding has 8 rows more than its lm_head (128264 and 128256), and so has everything that is
written here. Fine-tunes come with other numbers: cut to what the tokenizer uses (128257), both enlarged for new tokens
(and rounded up), or the embedding alone. Their missing rows are filled with that of a token which no text contains and
no training has used; no row is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pyvllama.config import EXTRA_EMBEDDING_ROWS, MllamaConfig
from pyvllama.conversion.checkpoint import Checkpoint, Tensor
from pyvllama.conversion.composed import Reordered
from pyvllama.conversion.tensor_map import EMBED_TOKENS, LM_HEAD
from pyvllama.errors import CheckpointError

__all__ = ["fit_config", "fit_tensors"]


def fit_config(checkpoint: Checkpoint, config: MllamaConfig) -> MllamaConfig:
    """The configuration with the vocabulary that the tensors really have.

    `vocab_size` becomes the rows of lm_head, or as many more as an embedding of more than 8 rows above it needs. A
    change is noted in the checkpoint's `notes`.

    Raises:
        CheckpointError: the embedding has no row for the image token, or fewer rows than lm_head.
    """
    rows = {name: _rows(checkpoint.tensors.get(name)) for name in (EMBED_TOKENS, LM_HEAD)}
    n_embed, n_head = rows[EMBED_TOKENS], rows[LM_HEAD]
    if config.text.tie_word_embeddings:
        n_head = config.text.vocab_size
    if n_embed is None or n_head is None:
        return config  # `Checkpoint.check` will list what is missing
    if config.image_token_index >= n_embed:
        raise CheckpointError(
            f"{checkpoint.path}: embed_tokens has {n_embed} rows, so none for the image token "
            f"{config.image_token_index} of {checkpoint.config_file}: it was cut off when the model was trained or "
            f"merged. Put the rows from {n_embed} on of the base model's embed_tokens behind it, and convert again"
        )
    if n_embed < n_head:
        raise CheckpointError(
            f"{checkpoint.path}: embed_tokens has {n_embed} rows, but "
            + (f"vocab_size is {n_head}" if config.text.tie_word_embeddings else f"lm_head has {n_head}")
            + ": some tokens could be generated, but not read"
        )
    vocab_size = max(n_head, n_embed - EXTRA_EMBEDDING_ROWS)
    if vocab_size == config.text.vocab_size:
        return config
    checkpoint.notes.append(
        f"the embedding has {n_embed} rows and the output {n_head}, where vocab_size = {config.text.vocab_size} of "
        f"{checkpoint.config_file} asks for {config.text.n_embedding_rows} and {config.text.vocab_size}; they are "
        "taken as they are"
    )
    return replace(config, text=replace(config.text, vocab_size=vocab_size))


def fit_tensors(tensors: Mapping[str, Tensor], config: MllamaConfig, filler_token: int) -> dict[str, Tensor]:
    """The tensors with as many rows in embedding and lm_head as the configuration of `fit_config` says.

    Args:
        tensors: canonical name -> tensor.
        config: of `fit_config`.
        filler_token: whose rows stand where there are none. In an lm_head with a row for the image token, it stands
            there too: no program is to answer with it.
    """
    fitted = dict(tensors)
    text = config.text
    for name, n_rows in ((EMBED_TOKENS, text.n_embedding_rows), (LM_HEAD, text.vocab_size)):
        tensor = tensors.get(name)
        present = _rows(tensor)
        if tensor is None or present is None or present > n_rows or filler_token >= present:
            continue
        order = np.concatenate([np.arange(present), np.full(n_rows - present, filler_token)]).astype(np.int64)
        if name == LM_HEAD and config.image_token_index < n_rows:
            order[config.image_token_index] = filler_token
        elif present == n_rows:
            continue
        shape = (n_rows, *tensor.shape[1:])
        fitted[name] = Reordered(tensor.name, tensor.path, tensor.type, shape, tensor, order)
    return fitted


def _rows(tensor: Tensor | None) -> int | None:
    return tensor.shape[0] if tensor is not None and len(tensor.shape) == 2 else None
