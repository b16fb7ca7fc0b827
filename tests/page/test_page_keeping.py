"""Chats that stay in the browser: after a reload, found again, named, deleted, taken elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from actions import ANSWERS, ask, attach, finished, png, sent_pictures, shown, texts
from fake_server import Fake

LINKS = "#chats a"


def titles(page: Any) -> list[str]:
    return page.locator(f"{LINKS} > span").all_inner_texts()


def reload(page: Any) -> None:
    page.reload()
    page.locator("#model:enabled").wait_for()


def wait_for_messages(page: Any, n: int) -> None:
    page.locator(".message").nth(n - 1).wait_for()


def download(page: Any, label: str) -> Any:
    """Playwright's Download."""
    page.get_by_role("button", name="Export and import").click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name=label).click()
    page.keyboard.press("Escape")
    return waiting.value


def test_a_chat_outlasts_a_reload_with_its_pictures(page: Any, fake: Fake):
    attach(page, ("a.png", "image/png", png(64, 48)))
    answer = ask(page, "Look at this")
    costs = answer.locator(".costs").inner_text()
    reload(page)
    wait_for_messages(page, 2)
    assert texts(page) == ["Look at this", "You said: Look at this"]
    assert page.locator(".costs").inner_text() == costs
    image = page.locator(".message .thumb img")
    assert image.evaluate("async (image) => (await image.decode(), image.naturalWidth)") == 64
    ask(page, "And now?")
    assert len(sent_pictures(fake.bodies[-1])) == 1


def test_each_chat_has_its_address(page: Any):
    ask(page, "First chat")
    first = page.url
    page.click("#new-chat")
    ask(page, "Second chat")
    assert page.url != first
    page.go_back()
    shown(page, "You said: First chat").wait_for()
    assert page.title() == "First chat – pyvllama"
    page.go_forward()
    shown(page, "You said: Second chat").wait_for()


def test_what_was_typed_is_not_lost(page: Any):
    page.fill("#composer-text", "half a thou")
    attach(page, ("a.png", "image/png", png()))
    page.locator("#attached img").wait_for()
    page.wait_for_timeout(700)
    reload(page)
    page.locator("#attached img").wait_for()
    assert page.input_value("#composer-text") == "half a thou"
    assert titles(page) == []  # it is no chat yet


def test_drafts_are_of_their_chats(page: Any):
    ask(page, "One")
    page.fill("#composer-text", "draft of one")
    page.click("#new-chat")
    assert page.input_value("#composer-text") == ""
    page.fill("#composer-text", "draft of another")
    page.locator(LINKS).click()
    shown(page, "You said: One").wait_for()
    assert page.input_value("#composer-text") == "draft of one"
    page.click("#new-chat")
    page.locator(".message").first.wait_for(state="detached")
    assert page.input_value("#composer-text") == "draft of another"


def test_a_reload_in_the_middle_of_an_answer_keeps_what_came(page: Any):
    page.fill("#composer-text", "slow")
    page.press("#composer-text", "Enter")
    page.locator(f"{ANSWERS}.live").get_by_text("word60").wait_for()
    reload(page)
    wait_for_messages(page, 2)
    assert page.locator(".answer").inner_text().startswith("word0 word1")
    assert page.locator(".state").inner_text() == "This answer was broken off."
    page.get_by_label("Answer again").click()
    page.locator(f"{ANSWERS}.live").wait_for()
    page.click("#stop")
    finished(page)


def test_search_finds_words_of_titles_and_messages(page: Any, fake: Fake):
    fake.says["Animals"] = "A quick brown fox, and so on."
    for text in ("Animals", "Plants", "Stones"):
        ask(page, text)
        page.click("#new-chat")
    assert titles(page) == ["Stones", "Plants", "Animals"]  # the newest first
    page.fill("#search", "brown FOX")
    page.locator(LINKS, has_text="Plants").wait_for(state="detached")
    assert titles(page) == ["Animals"]
    assert "quick brown fox" in page.locator(f"{LINKS} small").inner_text()
    assert page.inner_text("#search-result") == "1 chat found"
    page.fill("#search", "zebra")
    page.get_by_text("No chat has these words.").wait_for()


def test_renaming(page: Any):
    ask(page, "One")
    page.locator("#chats li").hover()
    page.get_by_label("Rename: One").click()
    page.keyboard.type("<b>Uno</b>")
    page.keyboard.press("Enter")
    assert titles(page) == ["<b>Uno</b>"]
    assert page.inner_text("#title") == "<b>Uno</b>"
    reload(page)
    assert titles(page) == ["<b>Uno</b>"]
    page.locator("#chats li").hover()
    page.get_by_label("Rename: <b>Uno</b>").click()
    page.keyboard.type("never")
    page.keyboard.press("Escape")
    assert titles(page) == ["<b>Uno</b>"]


def test_deleting_and_bringing_back(page: Any):
    attach(page, ("a.png", "image/png", png(64, 48)))
    ask(page, "One")
    page.locator("#chats li").hover()
    page.get_by_label("Delete: One").click()
    page.locator(LINKS).wait_for(state="detached")
    assert page.locator("#welcome").is_visible()
    page.get_by_role("button", name="Undo").click()
    page.locator(LINKS).wait_for()
    wait_for_messages(page, 2)
    reload(page)
    wait_for_messages(page, 2)
    assert (
        page.locator(".message .thumb img").evaluate("async (image) => (await image.decode(), image.naturalWidth)")
        == 64
    )
    page.locator("#chats li").hover()
    page.get_by_label("Delete: One").click()
    page.locator(LINKS).wait_for(state="detached")
    reload(page)
    assert titles(page) == []
    assert stored(page) == {"chats": 0, "pictures": 0}


def stored(page: Any) -> dict[str, int]:
    """How many records lie in the browser's database."""
    return page.evaluate(
        """async () => {
            const asked = (request) => new Promise((resolve) => (request.onsuccess = () => resolve(request.result)));
            const database = await asked(indexedDB.open("pyvllama"));
            const counts = {};
            for (const name of ["chats", "pictures"]) {
                counts[name] = await asked(database.transaction(name).objectStore(name).count());
            }
            return counts;
        }"""
    )


def test_export_and_import_of_everything(page: Any, open_page: Callable[..., Any], tmp_path: Path, fake: Fake):
    attach(page, ("a.png", "image/png", png(64, 48)))
    page.get_by_label("Add a picture by its address").click()
    page.fill("#address-text", "https://example.org/cat.png")
    page.press("#address-text", "Enter")
    ask(page, "One <i>")
    page.click("#new-chat")
    ask(page, "Two")
    path = tmp_path / "chats.json"
    download(page, "All 2 chats as JSON").save_as(path)
    file = json.loads(path.read_text(encoding="utf-8"))
    assert (file["format"], file["version"], len(file["chats"]), len(file["pictures"])) == ("pyvllama-chats", 1, 2, 2)

    other = open_page()  # another browser
    for says in ("2 chats imported.", "0 chats imported, 2 already here."):
        other.get_by_role("button", name="Export and import").click()
        other.set_input_files("dialog input[type=file]", path)
        other.get_by_text(says).wait_for()
    assert titles(other) == ["Two", "One <i>"]
    other.locator(LINKS).nth(1).click()
    wait_for_messages(other, 2)
    assert other.locator(".costs").is_visible()
    ask(other, "More")
    address, url = sent_pictures(fake.bodies[-1])
    assert address.startswith("data:image/png;base64,")
    assert url == "https://example.org/cat.png"


def test_export_of_one_chat_as_markdown(page: Any, tmp_path: Path):
    page.locator("#system summary").click()
    page.fill("#system-text", "Be brief.")
    attach(page, ("a.png", "image/png", png()))
    ask(page, "One")
    waiting = download(page, "This chat as Markdown")
    assert waiting.suggested_filename == "One.md"
    waiting.save_as(tmp_path / "chat.md")
    expected = "# One\n\n> Be brief.\n\n**You**\n\n[picture: a.png]\n\nOne\n\n**fake-vision**\n\nYou said: One\n"
    assert (tmp_path / "chat.md").read_text(encoding="utf-8") == expected


CHAT = {"id": "0" * 24, "title": "", "created": 1, "updated": 1, "system": "", "messages": []}
MESSAGE = {"id": "1", "role": "user", "text": "Hi", "pictures": [], "created": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no json", "This file is no JSON."),
        ({"format": "x"}, "holds no chats"),
        ({"version": 2}, "of version 2"),
        ({"chats": {}}, "chats is no list"),
        ({"chats": [CHAT | {"title": 5}]}, "a chat's title is no text"),
        ({"chats": [CHAT | {"messages": [MESSAGE | {"role": "system"}]}]}, "has the role system"),
        ({"pictures": [{"id": "p", "name": "n", "data": "data:text/html;base64,AAAA"}]}, "of no known type"),
        ({"pictures": [{"id": "p", "name": "n", "url": "javascript:alert(1)"}]}, "begins with http"),
        ({"pictures": [None]}, "a picture's id is no text"),
    ],
)
def test_files_that_are_wrong_are_refused_whole(page: Any, change: Any, says: str):
    good = {"format": "pyvllama-chats", "version": 1, "chats": [CHAT | {"messages": [MESSAGE]}], "pictures": []}
    text = change if isinstance(change, str) else json.dumps(good | change)
    page.get_by_role("button", name="Export and import").click()
    file = {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
    page.set_input_files("dialog input[type=file]", file)
    page.locator("#notices").get_by_text(says).wait_for()
    assert titles(page) == []


def test_tabs_see_one_another(page: Any, open_page: Callable[..., Any]):
    other = open_page(context=page.context)
    ask(page, "From the first tab")
    other.locator(LINKS, has_text="From the first tab").wait_for()
    other.locator(LINKS).click()
    wait_for_messages(other, 2)
    ask(page, "More")
    shown(other, "You said: More").wait_for()


def test_pictures_nobody_needs_are_cleared_away(page: Any):
    attach(page, ("a.png", "image/png", png()))
    page.locator("#attached img").wait_for()
    page.wait_for_timeout(700)
    assert stored(page)["pictures"] == 1
    page.locator(".remove").click()
    page.wait_for_timeout(700)
    reload(page)
    page.wait_for_timeout(100)
    assert stored(page)["pictures"] == 0


def test_without_storage_the_page_works_and_says_so(browser: Any, open_page: Callable[..., Any]):
    context = browser.new_context()
    context.set_default_timeout(60_000)
    refuse = "() => { throw new DOMException('refused', 'SecurityError'); }"
    context.add_init_script(
        f"Object.defineProperty(window, 'indexedDB', {{ get: {refuse} }});"
        f"Object.defineProperty(window, 'localStorage', {{ get: {refuse} }});"
    )
    page = open_page(context=context)
    page.get_by_text("does not let the page keep anything").wait_for()
    attach(page, ("a.png", "image/png", png()))
    ask(page, "Hi")
    page.click("#new-chat")
    page.locator(LINKS).click()
    wait_for_messages(page, 2)
    context.close()


def test_a_full_disk_is_said(page: Any):
    page.evaluate(
        """() => {
            IDBObjectStore.prototype.put = function () {
                throw new DOMException("full", "QuotaExceededError");
            };
        }"""
    )
    ask(page, "Hi")
    page.get_by_text("the browser's storage is full").first.wait_for()
    assert texts(page) == ["Hi", "You said: Hi"]
