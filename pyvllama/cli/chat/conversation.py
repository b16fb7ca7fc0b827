"""What was said so far, and what will be sent along with the next question."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pyvllama.cli.chat.picture import Picture

__all__ = ["Conversation", "Question", "Turn"]


@dataclass(frozen=True)
class Question:
    """A user's message; without text the pictures are the question."""

    text: str
    pictures: tuple[Picture, ...] = ()

    def message(self) -> dict[str, Any]:
        """In OpenAI's shape. The pictures come first: so the model was trained."""
        if not self.pictures:
            return {"role": "user", "content": self.text}
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture.image} for picture in self.pictures]
        return {"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: Question
    answer: str


@dataclass
class Conversation:
    """All turns.

    Attributes:
        system: the system prompt, or None.
        turns: the oldest first.
        pending: pictures for the next question.
        options: sampling options that were chosen; others are the model's own.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    pending: list[Picture] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def messages(self, question: Question | None = None) -> list[dict[str, Any]]:
        """In OpenAI's shape, with a further question at the end."""
        result: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            result += [turn.question.message(), {"role": "assistant", "content": turn.answer}]
        return result if question is None else [*result, question.message()]

    def pictures(self) -> Iterator[Picture]:
        """Those of all turns, in order, without the pending ones."""
        for turn in self.turns:
            yield from turn.question.pictures
