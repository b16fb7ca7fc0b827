"""The page in front of the real server with the pocket model."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from actions import ask, attach, finished, texts
from fake_server import serving

from pyvllama.engine import Engine
from pyvllama.locate import pocket_samples
from pyvllama.server.app import create_app
from pyvllama.server.settings import Settings

SMALL: dict[str, Any] = {"n_ctx": 8192, "n_threads": 1, "parallel": 2}
EXPECTED = ["The star is blue.", None, 'The text says "2026".']


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app(Settings(**SMALL))


@pytest.fixture(scope="module")
def url(app: Any) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture
def real(open_page: Any, url: str) -> Any:
    """The page of the real server."""
    return open_page(url)


def test_a_sample_picture_is_attached_and_the_right_answer_streams_in(real: Any, monkeypatch: Any):
    step = Engine._step
    monkeypatch.setattr(Engine, "_step", lambda engine: (time.sleep(0.05), step(engine))[1])  # slower than the screen
    path, question = pocket_samples()[0]
    attach(real, (path.name, "image/png", Path(path).read_bytes()))
    real.locator("#attached img").wait_for()
    real.evaluate(
        """() => {
            window.states = [];
            const note = () => window.states.push(document.querySelector(".answer")?.textContent ?? "");
            const what = { childList: true, subtree: true, characterData: true };
            new MutationObserver(note).observe(document.getElementById("messages"), what);
        }"""
    )
    answer = ask(real, question)
    assert texts(real) == [question, "The star is blue."]
    costs = answer.locator(".costs").inner_text()
    assert "picture " in costs
    assert "prompt " in costs
    assert "/s" in costs
    monkeypatch.undo()
    states = list(dict.fromkeys(real.evaluate("window.states")))
    assert len(states) > 3  # nothing, "The", "The star" ...
    assert all("The star is blue.".startswith(state) for state in states)
    assert states[-1] == "The star is blue."
    ask(real, "How many shapes are there?")
    assert texts(real)[-1] == "There are 5 shapes."
    again = ask(real, "Describe the image.")  # the whole chat is sent again, but the picture is not encoded again
    assert not re.match(r"picture [\d.]", again.locator(".costs").inner_text())


@pytest.mark.parametrize("index", range(len(EXPECTED)))
def test_the_samples_that_are_offered_are_answered_right(real: Any, samples: Any, index: int):
    path, question = pocket_samples()[index]
    real.get_by_role("button", name=question).click()
    finished(real)
    by_content = {s["path"].read_bytes(): s for s in samples}
    known = {qa["question"]: qa["expected"] for qa in by_content[Path(path).read_bytes()]["qa"]}
    expected = EXPECTED[index] or known[question]
    assert known.get(question, expected) == expected
    assert texts(real) == [question, expected]


def test_the_same_picture_again_comes_from_the_cache(real: Any):
    path, question = pocket_samples()[0]
    for _ in range(2):
        attach(real, (path.name, "image/png", Path(path).read_bytes()))
        real.locator("#attached img").wait_for()
        answer = ask(real, question)
        costs = answer.locator(".costs").inner_text()
        real.click("#new-chat")
        real.locator("#welcome").wait_for()
    assert "picture from cache" in costs


def test_stopping_frees_the_server(real: Any, app: Any):
    real.click("#open-settings")
    assert real.get_attribute("#option-temperature", "placeholder") not in ("", "default")  # the model's own
    for name, value in {"temperature": 100, "top_p": 1, "top_k": 0, "min_p": 0, "seed": 3}.items():
        real.fill(f"#option-{name}", str(value))  # any token is as likely as another: nonsense, and long
    real.keyboard.press("Escape")
    real.fill("#composer-text", "Hello!")
    real.evaluate(
        """() => {
            const hasBegun = () => document.querySelector(".live .answer")?.textContent;
            const stop = () => hasBegun() && document.getElementById("stop").click();
            new MutationObserver(stop).observe(document.getElementById("messages"), { childList: true, subtree: true });
        }"""
    )  # in the page: from here it would come too late, at 2,000 tokens a second
    real.click("#send")
    assert finished(real).locator(".state").inner_text() == "Stopped."
    deadline = time.monotonic() + 20
    while any(loaded.served.engine.n_active for loaded in app.state.pool.loaded()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(texts(real)[1]) > 0


def test_a_prompt_that_is_too_long_is_refused_in_the_servers_words(open_page: Any, url: str):
    page = open_page(url, may_fail=True)
    failure = ask(page, "word " * 9000).locator(".failure")
    assert "8192" in failure.inner_text()
    assert page.locator(".said").inner_text().startswith("word word")


def test_an_address_that_is_not_allowed(open_page: Any, url: str):
    page = open_page(url, may_fail=True)
    page.get_by_label("Add a picture by its address").click()
    page.fill("#address-text", "http://127.0.0.1:1/cat.png")
    page.press("#address-text", "Enter")
    failure = ask(page, "What is it?").locator(".failure")
    assert "127.0.0.1" in failure.inner_text()


def test_with_an_api_key(open_page: Any):
    with serving(create_app(Settings(**SMALL, api_keys=("sesame",)))) as url:
        page = open_page(url, may_fail=True)
        page.locator("#banner").get_by_role("button", name="Enter API key").click()
        page.keyboard.type("sesame")
        page.keyboard.press("Escape")
        page.locator("#samples button").first.click()
        finished(page)
        assert texts(page)[-1] == "The star is blue."
