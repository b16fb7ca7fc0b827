"""A browser, and pages in it that may not do what a page of ours never does."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_server import Fake, fake_app, serving

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--host-resolver-rules=MAP page.test 127.0.0.1"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Of a module, not a session: as long as Playwright runs, asyncio.run is impossible in this thread."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(CHROMIUMS)} is on PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def fake_url_and_fake() -> Iterator[tuple[str, Fake]]:
    fake = Fake()
    with serving(fake_app(fake)) as url:
        yield url, fake


@pytest.fixture
def fake(fake_url_and_fake: tuple[str, Fake]) -> Fake:
    """The stand-in for the server, as new."""
    fake = fake_url_and_fake[1]
    fake.__init__()
    return fake


@pytest.fixture
def open_page(browser: Any, fake_url_and_fake: tuple[str, Fake], fake: Fake) -> Iterator[Callable[..., Any]]:
    """open_page(url=None, context=None, may_fail=False, **options of a context) -> a page of the stand-in.

    After the test no page has asked another host for anything, nor logged an error or a warning. With `may_fail` the
    browser may log requests that failed.
    """
    contexts, problems = [], []

    def watch(page: Any, url: str, may_fail: bool) -> None:
        def logged(message: Any) -> None:
            is_failure = message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not (may_fail and is_failure):
                problems.append(f"{message.type}: {message.text}")

        def requested(request: Any) -> None:
            if not request.url.startswith((f"{url}/", "blob:")):
                problems.append(f"asked for {request.url[:100]}")

        page.on("console", logged)
        page.on("pageerror", lambda error: problems.append(f"uncaught: {error}"))
        page.on("request", requested)

    def make(url: str | None = None, context: Any = None, may_fail: bool = False, **options: Any) -> Any:
        url = url or fake_url_and_fake[0]
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1100, "height": 750}, **options})
            context.set_default_timeout(60_000)  # machines that test have other things to do
            contexts.append(context)
        page = context.new_page()
        watch(page, url, may_fail)
        page.goto(url)
        page.locator("#model:enabled, #banner:not([hidden])").first.wait_for()
        return page

    yield make
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    """The page of the stand-in."""
    return open_page()
