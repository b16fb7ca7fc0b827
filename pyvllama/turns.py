"""A conversation that has grown too long, without its oldest turns: a pure function of its messages."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyvllama.errors import ContextOverflow

__all__ = ["drop_turns", "split_turns"]

Message = Mapping[str, Any]

_SYSTEM = ("system", "developer")


def split_turns(messages: Sequence[Message]) -> list[list[int]]:
    """The turns of a conversation.

    Args:
        messages: in OpenAI's shape.

    Returns:
        Indices of each turn's messages, oldest turn first. A turn begins with a user's message after something else
        than one (a system message between two counts for nothing) and goes on with answers, tool calls and their
        results. What comes before the first user's message is a turn of its own. System messages are in none.
    """
    turns: list[list[int]] = []
    user_before = False
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in _SYSTEM:
            continue
        if not turns or (role == "user" and not user_before):
            turns.append([])
        turns[-1].append(i)
        user_before = role == "user"
    return turns


def drop_turns(
    messages: Sequence[Message], n_tokens: Callable[[Sequence[Message]], int], n_ctx: int, max_tokens: int | None
) -> tuple[Sequence[Message], int]:
    """Leave the oldest turns away, as few as possible, until the prompt and its answer fit into the context.

    Room is kept for max_tokens tokens of the answer, but for no more than half of the context; without max_tokens for
    an eighth of it. Where the last turn alone leaves less room, the answer gets what there is.

    Args:
        messages: in OpenAI's shape. Pictures go with their turns.
        n_tokens: counts the tokens of the prompt that some of the messages make; called about log2(turns) times.
        n_ctx: positions of the context.
        max_tokens: length of the answer at most, or None.

    Returns:
        The messages that stay, and the number of turns left away.

    Raises:
        ContextOverflow: not even the last turn, with the system messages, fits. And what `n_tokens` raises.
    """
    room = n_ctx - (n_ctx // 8 if max_tokens is None else min(max_tokens, n_ctx // 2))
    if n_tokens(messages) <= room:
        return messages, 0
    turns = split_turns(messages)

    def without(n: int) -> list[Message]:
        gone = {i for turn in turns[:n] for i in turn}
        return [message for i, message in enumerate(messages) if i not in gone]

    last = max(len(turns) - 1, 0)
    n = bisect.bisect_left(range(last), True, lo=1, key=lambda n: n_tokens(without(n)) <= room) if last else 0
    kept = without(n)
    if n == last and (needed := n_tokens(kept)) > n_ctx:
        raise ContextOverflow(
            f"the last turn alone, with the system prompt, has {needed} tokens, the context {n_ctx}: shorten it or "
            "load the model with a larger n_ctx (--ctx-size)"
        )
    return kept, n
