#!/usr/bin/env python3
"""Draw the README's picture of the web page: starts the server, asks the pocket model for real, and takes a screenshot.

Needs Playwright (pip install playwright) and Chromium on PATH.

    tools/page_picture.py        writes tools/pictures/page.png
"""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "pyvllama" / "pocket"
SCALE = 2  # for screens of today
COLOURS = 128  # of the file: flat areas and text need no more
MAX_BYTES = 200_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
CHATS = [
    [("text.png", "What does the text say?")],
    [("hearts.png", "How many shapes are there?")],
    [("shapes.png", "What colour is the star?"), (None, "Describe the image.")],
]


def ask(page: Page, picture: str | None, question: str) -> None:
    if picture:
        page.set_input_files("#files", SAMPLES / picture)
        page.locator("#attached img").wait_for()
    n = page.locator(".message").count()
    page.fill("#composer-text", question)
    page.click("#send")
    page.locator(".message").nth(n + 1).locator("article[aria-busy=false]").wait_for()


def draw(url: str) -> bytes:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        view = {"width": 1080, "height": 800}
        page = browser.new_page(viewport=view, device_scale_factor=SCALE, reduced_motion="reduce")
        page.goto(url)
        page.locator("#samples li").first.wait_for()
        for chat in CHATS:
            page.click("#new-chat")
            page.locator("#welcome").wait_for()
            for picture, question in chat:
                ask(page, picture, question)
        page.mouse.move(700, 560)
        page.wait_for_timeout(300)
        shot = page.screenshot()
        browser.close()
    return shot


def main() -> None:
    command = [sys.executable, "-m", "pyvllama.cli.main", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            for line in server.stdout or ():
                if found := re.search(r"http://localhost:\d+", line):
                    break
            else:
                raise SystemExit("the server did not start")
            shot = draw(found[0])
        finally:
            server.terminate()
    path = ROOT / "tools" / "pictures" / "page.png"
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, path.stat().st_size)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"more than {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
