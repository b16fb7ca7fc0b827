"""What people do on the page, in words of the tests."""

import io
from typing import Any

from PIL import Image

ANSWERS = ".message.assistant"


def ask(page: Any, text: str) -> Any:
    """Write and send; the answer's element, once the answer is complete."""
    n = page.locator(ANSWERS).count()
    page.fill("#composer-text", text)
    page.click("#send")
    return finished(page, n)


def finished(page: Any, index: int = -1) -> Any:
    """An answer, once it is complete."""
    answer = page.locator(ANSWERS).nth(index)
    answer.locator("article[aria-busy=false]").wait_for()
    return answer


def texts(page: Any) -> list[str]:
    """What was said so far, by both, without the lines around it."""
    return page.locator(".said, .answer").all_inner_texts()


def png(width: int = 40, height: int = 30, colour: Any = "red", mode: str = "RGB", **options: Any) -> bytes:
    return picture("PNG", width, height, colour, mode, **options)


def picture(kind: str, width: int, height: int, colour: Any, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), colour).save(file, kind, **options)
    return file.getvalue()


def attach(page: Any, *files: tuple[str, str, bytes]) -> None:
    """Pick files: (name, MIME type, bytes)."""
    page.set_input_files("#files", [{"name": n, "mimeType": m, "buffer": b} for n, m, b in files])


def sent_pictures(body: dict[str, Any]) -> list[str]:
    """Addresses of the pictures in a request."""
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def shown(page: Any, text: str) -> Any:
    """A text in the chat (what is read out stands in the page a second time)."""
    return page.locator("#messages").get_by_text(text)
