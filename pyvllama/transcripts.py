"""Conversations and texts as the model reads them from beginning to end, and which of their tokens are answers."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pyvllama.chats_file import Chat, Text
from pyvllama.errors import PromptError, VllamaError
from pyvllama.model import Model
from pyvllama.prompt import ImageSlot, Prompt, build_prompt

__all__ = ["Transcript", "located", "read_transcripts"]


@dataclass(frozen=True, eq=False)
class Transcript:
    """A prompt with its answers.

    Attributes:
        token_ids: all tokens; the image token's id at every image's position.
        images: by rising position.
        answers: positions of the tokens that the model was to say, by rising position.
        is_open: it ends where the assistant is to speak, and the answer is not known.
        where: its origin, for messages.
    """

    token_ids: tuple[int, ...]
    images: tuple[ImageSlot, ...]
    answers: tuple[int, ...]
    is_open: bool
    where: str

    def answered(self, token_ids: Sequence[int]) -> "Transcript":
        """An open transcript with its answer."""
        n = len(self.token_ids)
        answer = tuple(range(n, n + len(token_ids)))
        return Transcript(
            (*self.token_ids, *token_ids), self.images, (*self.answers, *answer), is_open=False, where=self.where
        )


def read_transcripts(item: Chat | Text, model: Model, chunk_tokens: int) -> list[Transcript]:
    """The transcript of a chat, or those of the chunks of a text.

    A text is cut into chunks of `chunk_tokens` tokens, BOS included. The answers of a chunk are the tokens of its
    second half, which all have context enough (llama.cpp's perplexity tool does the same).

    Raises:
        PromptError: the chat makes no prompt, or its template shows no answers; says which file and line.
    """
    if isinstance(item, Chat):
        with located(item.where):
            return [_of_chat(item, model)]
    return list(_of_text(item, model, chunk_tokens))


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Errors from within say where the data is from."""
    try:
        yield
    except VllamaError as e:
        raise type(e)(f"{where}: {e}") from e


def _of_text(item: Text, model: Model, chunk_tokens: int) -> Iterator[Transcript]:
    tokens = model.tokenizer.tokenize(item.text)
    bos = [] if model.tokenizer.bos is None else [model.tokenizer.bos]
    step = chunk_tokens - len(bos)
    for i, start in enumerate(range(0, len(tokens), step), 1):
        chunk = (*bos, *tokens[start : start + step])
        answers = range(len(chunk) // 2 + 1, len(chunk))
        yield Transcript(chunk, (), tuple(answers), is_open=False, where=f"{item.where}, chunk {i}")


def _of_chat(chat: Chat, model: Model) -> Transcript:
    messages = chat.messages
    is_open = messages[-1]["role"] != "assistant"

    def render(n: int, *, add_generation_prompt: bool) -> Prompt:
        return build_prompt(
            messages[:n],
            model.template,
            model.tokenizer,
            image_token_id=model.image_token,
            add_generation_prompt=add_generation_prompt,
            tools=chat.tools,
        )

    whole = render(len(messages), add_generation_prompt=is_open)
    ids, eog = whole.token_ids, model.tokenizer.eog
    answers: list[int] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i == 0:
            continue
        head = render(i, add_generation_prompt=True).token_ids
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(head, ids, strict=False)))
        # The last token of the head may have grown together with the answer's first.
        end = next((k + 1 for k in range(start, len(ids)) if ids[k] in eog), None)
        is_last = i == len(messages) - 1
        if start < len(head) - 1 or (end is None and not is_last):
            if is_last:
                raise PromptError("the chat template shows a past answer differently from one to come")
            continue  # a template may shorten the past
        answers += range(start, len(ids) if end is None else end)
    return Transcript(ids, whole.images, tuple(answers), is_open=is_open, where=chat.where)
