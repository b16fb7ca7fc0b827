"""Files of chats about the pocket model's sample pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_chats(path: Path, samples: Sequence[dict[str, Any]], *, answers: bool = True) -> Path:
    """A chat for each question about each picture; without answers they are open."""
    with path.open("w", encoding="utf-8") as f:
        for sample in samples:
            url = {"url": str(sample["path"])}
            for qa in sample["qa"]:
                parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": qa["question"]}]
                chat = [{"role": "user", "content": parts}]
                if answers:
                    chat.append({"role": "assistant", "content": qa["truth"]})
                f.write(json.dumps({"messages": chat}) + "\n")
    return path


def write_text_chats(path: Path, n: int) -> Path:
    """Chats without pictures."""
    with path.open("w", encoding="utf-8") as f:
        for question in ["Hello!", "Who are you?", "Thanks!", "What can you do?"][:n]:
            answer = {"role": "assistant", "content": "I can see shapes."}
            f.write(json.dumps([{"role": "user", "content": question}, answer]) + "\n")
    return path
