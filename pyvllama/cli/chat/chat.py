"""A chat: the model, the conversation, and how it is shown."""

from dataclasses import dataclass, field

from pyvllama.cli import ui
from pyvllama.cli.chat.conversation import Conversation, Question, Turn
from pyvllama.cli.chat.markdown import MarkdownStyler
from pyvllama.cli.chat.picture import Picture
from pyvllama.cli.chat.thumbnail import thumbnail
from pyvllama.errors import VllamaError
from pyvllama.llm import LLM

__all__ = ["Chat", "count"]


def count(n: int, noun: str) -> str:
    """1 picture, 2 pictures."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


@dataclass
class Chat:
    """What commands act on.

    Attributes:
        llm: the model.
        conversation: so far.
        show_timings: a line below each answer.
        thumbnails: how pictures are shown, one of `thumbnail.PROTOCOLS`.
        context_shift: the oldest turns are left away when the context is full.
        seen: digests of the pictures that were encoded already.
    """

    llm: LLM
    conversation: Conversation
    show_timings: bool = True
    thumbnails: str = "none"
    context_shift: bool = False
    seen: set[str] = field(default_factory=set)

    def attach(self, picture: Picture) -> None:
        """Keep a picture for the next question, and show it."""
        self.conversation.pending.append(picture)
        ui.terminal_graphics(thumbnail(picture.image, self.thumbnails, ui.terminal_width()))
        ui.note(f"Attached {picture.name} ({self.described(picture)}).")

    def described(self, picture: Picture) -> str:
        """A picture's size and tiles."""
        return f"{picture.size}, {count(picture.n_tiles(self.llm.model.preprocessor), 'tile')}"

    def say(self, text: str) -> None:
        """Put a question with the pictures that are attached; they stay attached if there is no answer."""
        if self.ask(Question(text, tuple(self.conversation.pending))):
            self.conversation.pending.clear()

    def ask(self, question: Question) -> bool:
        """Put a question, show the answer as it comes, and keep both.

        Ctrl-C ends the answer; what came until then is kept. Returns False if nothing came: then the conversation is as
        it was.
        """
        answer = _Answer()
        try:
            self._stream(question, answer)
        except KeyboardInterrupt:
            answer.end()
            ui.note("Stopped.")
        except VllamaError as e:
            answer.end()
            ui.error(str(e))
        if not answer.text:
            return False
        self.conversation.turns.append(Turn(question, answer.text))
        return True

    def _stream(self, question: Question, answer: "_Answer") -> None:
        pictures = [*self.conversation.pictures(), *question.pictures]
        unseen = {p.digest: p for p in pictures if p.digest not in self.seen}
        finish_reason, timings, n_dropped = None, None, 0
        with ui.waiting("Reading") as waiting:
            looking = _Looking(self, list(unseen.values()), waiting)
            stream = self.llm.chat(
                self.conversation.messages(question),
                stream=True,
                image_progress=looking.update,
                context_shift=self.context_shift,
                **self.conversation.options,
            )
            for chunk in stream:
                timings = chunk.get("timings", timings)
                n_dropped = chunk.get("dropped_turns", n_dropped)
                for choice in chunk["choices"]:
                    finish_reason = choice["finish_reason"] or finish_reason
                    if delta := choice["delta"].get("content"):
                        waiting.end()
                        answer.show(delta)
        answer.end()
        self.seen |= set(unseen)
        if n_dropped:
            ui.note(ui.format_dropped(n_dropped))
        if finish_reason == "length":
            ui.note("The answer is cut off: max_tokens or the end of the context is reached.")
        if self.show_timings and timings:
            n_tiles = sum(p.n_tiles(self.llm.model.preprocessor) for p in looking.pictures_encoded())
            ui.note(ui.format_timings(timings, n_tiles=n_tiles))


class _Answer:
    """An answer on its way to the screen."""

    def __init__(self) -> None:
        self.text = ""
        self._styler = MarkdownStyler()
        self._is_open = True

    def show(self, delta: str) -> None:
        self.text += delta
        ui.write_styled(self._styler.feed(delta))

    def end(self) -> None:
        if self._is_open:
            self._is_open = False
            if self.text:
                ui.write_styled([*self._styler.finish(), ("\n", None)])


class _Looking:
    """Says which picture is being encoded: a fraction that falls means that the next one has begun."""

    def __init__(self, chat: Chat, pictures: list[Picture], waiting: ui.Waiting) -> None:
        self._chat = chat
        self._pictures = pictures
        self._waiting = waiting
        self._n_begun = 0
        self._fraction = 1.0  # as if one had just ended

    def update(self, fraction: float) -> None:
        if fraction < self._fraction or self._fraction >= 1:
            self._n_begun += 1
        self._fraction = fraction
        if fraction >= 1:
            self._waiting.update(None, "Reading")
            return
        known = self._n_begun <= len(self._pictures)
        # one that had been seen, but has left the cache since, is not among them
        what = "the picture" if not known else self._name(self._pictures[self._n_begun - 1])
        self._waiting.update(fraction, f"Looking at {what}")

    def pictures_encoded(self) -> list[Picture]:
        """Those that this answer took encoding of; empty if it is not certain."""
        return self._pictures if self._n_begun == len(self._pictures) else []

    def _name(self, picture: Picture) -> str:
        tiles = count(picture.n_tiles(self._chat.llm.model.preprocessor), "tile")
        return f"{picture.short_name}, {tiles}"
