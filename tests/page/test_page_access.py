"""The page without a mouse, without eyes, in the dark, on a phone."""

from typing import Any

import pytest
from actions import ANSWERS, ask, attach, finished, png
from fake_server import Fake

# Everything that can be seen and has text of its own: [what, its contrast, how much is needed].
CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => {
        const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
        return (light + 0.05) / (dark + 0.05);
    };
    const ground = (element) => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
        return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const style = getComputedStyle(element);
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const isField = element.matches("input, textarea, select");
        const isIcon = element.localName === "svg";
        if (!(own || isField || isIcon)) continue;
        if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        if (element.closest(".sr, .sprite, .skip, :disabled, .replaced")) continue;
        const at = ground(element);
        const needed = isIcon ? 3 : 4.5;
        found.push([element.outerHTML.slice(0, 90), contrast(over(rgba(style.color), at), at), needed]);
        if (element.placeholder) {
            const colour = getComputedStyle(element, "::placeholder").color;
            found.push([`placeholder of ${element.id}`, contrast(over(rgba(colour), at), at), 4.5]);
        }
        if (isField && parseFloat(style.borderTopWidth) > 0 && element.id !== "model" && element.id !== "search") {
            const around = ground(element.parentElement);
            found.push([`edge of ${element.id}`, contrast(over(rgba(style.borderTopColor), at), around), 3]);
        }
    }
    return found;
}"""
RICH = (
    "# T\n\nSome **bold**, `code`, [link](https://x.org)\n\n> quote\n\n1. item\n\n```py\nx\n```\n\n| a |\n|---|\n| b |"
)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


def fill(page: Any, fake: Fake) -> None:
    """A chat with everything in it."""
    fake.says["Rich"] = RICH
    page.locator("#system summary").click()
    attach(page, ("a.png", "image/png", png()))
    ask(page, "Rich")
    ask(page, "wrong")
    ask(page, "long")
    attach(page, ("b.png", "image/png", png()))
    page.get_by_label("Add a picture by its address").click()
    page.fill("#address-text", "https://example.org/cat.png")
    page.press("#address-text", "Enter")
    page.get_by_label("Add a picture by its address").click()


def test_everything_can_be_read(open_page: Any, fake: Fake, scheme: str):
    page = open_page(
        color_scheme=scheme, may_fail=True, viewport={"width": 1100, "height": 2400}, reduced_motion="reduce"
    )
    fill(page, fake)
    page.locator("#chats li").hover()
    assert_contrasts(page, 60)
    for button in ("#open-settings", "#open-export", "#open-keys"):
        page.click(button)
        page.locator("dialog").wait_for()
        if button == "#open-settings":
            page.fill("#option-top_p", "7")
        assert_contrasts(page, 60)
        page.keyboard.press("Escape")
    page.get_by_label("Edit and ask again").first.click()
    page.locator(".message.user").first.hover()
    page.get_by_label("Delete answer").last.click()
    page.get_by_role("button", name="Undo").hover()
    assert_contrasts(page, 60)


def assert_contrasts(page: Any, at_least: int) -> None:
    measured = page.evaluate(CONTRASTS)
    assert len(measured) >= at_least
    assert [(what, round(is_, 2)) for what, is_, needed in measured if is_ < needed] == []


def test_dark_mode_follows_the_system_until_it_is_chosen(page: Any):
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    switch = page.get_by_role("button", name="Dark mode", pressed=True)  # the page hears of it a moment later
    switch.wait_for()
    switch = page.get_by_role("button", name="Dark mode")
    switch.click()
    assert page.evaluate(ground) == light
    assert switch.get_attribute("aria-pressed") == "false"
    page.reload()
    assert page.evaluate(ground) == light
    switch.click()
    assert page.evaluate(ground) == dark
    assert page.evaluate("localStorage.getItem('pyvllama-theme')") is None  # what the system says anyway


def test_landmarks_headings_and_names(open_page: Any, fake: Fake):
    page = open_page(may_fail=True)
    fill(page, fake)
    assert page.locator("html").get_attribute("lang") == "en"
    for role, name in (("main", None), ("complementary", "Chats"), ("navigation", "Chats")):
        assert page.get_by_role(role).count() == page.get_by_role(role, name=name).count() == 1
    assert page.get_by_role("form", name="New message").count() == 1
    assert page.locator("h1").count() == 1
    levels = page.locator("main :is(h1, h2, h3, h4, h5, h6)").evaluate_all(
        "all => all.map((h) => Number(h.localName[1]))"
    )
    assert levels[0] == 1
    for opener in (None, "#open-settings", "#open-export", "#open-keys"):
        if opener:
            page.click(opener)
            assert page.get_by_role("dialog").get_attribute("aria-labelledby")
        assert nameless(page) == []
        assert repeated_ids(page) == []
        if opener:
            page.keyboard.press("Escape")
            assert page.evaluate("document.activeElement.id") == opener[1:]  # the focus comes back


def nameless(page: Any) -> list[str]:
    """Controls and pictures without a name, as the accessibility tree has it; and labels that are no text at all."""
    return page.evaluate(
        """() => {
            const all = (selector) => [...document.querySelectorAll(selector)];
            const labelled = (e) => [...(e.labels ?? [])].some((label) => label.textContent.trim());
            const named = (e) => (e.ariaLabel ?? "").trim() || e.textContent.trim() || e.title || labelled(e);
            const controls = all("button, a[href], input, textarea, select, summary, dialog");
            const shown = controls.filter((e) => e.checkVisibility() && !e.closest("[aria-hidden=true]"));
            const without = shown.filter((e) => !named(e) && !e.getAttribute("aria-labelledby"));
            const pictures = all("img").filter((e) => !e.hasAttribute("alt"));
            const icons = all("button svg").filter((e) => e.ariaHidden !== "true" && !e.closest("[aria-label]"));
            return [...without, ...pictures, ...icons].map((e) => e.outerHTML.slice(0, 120));
        }"""
    )


def repeated_ids(page: Any) -> list[str]:
    return page.evaluate(
        """() => {
            const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
            const names = ["aria-controls", "aria-labelledby", "aria-describedby", "for"];
            const all = [...document.querySelectorAll("*")];
            const refs = all.flatMap((e) => names.map((name) => e.getAttribute(name))).filter(Boolean);
            return [...ids.filter((id, i) => ids.indexOf(id) !== i), ...refs.filter((id) => !ids.includes(id))];
        }"""
    )


def test_answers_are_read_out_by_the_paragraph_not_by_the_token(page: Any, fake: Fake):
    fake.says["Tell"] = "First paragraph.\n\n- one\n- two\n\nLast words."
    page.evaluate(
        """() => {
            window.spoken = [];
            const added = (change) => change.addedNodes.forEach((node) => window.spoken.push(node.textContent));
            const note = (changes) => changes.forEach(added);
            new MutationObserver(note).observe(document.getElementById("spoken"), { childList: true, subtree: true });
        }"""
    )
    ask(page, "Tell")
    assert page.evaluate("window.spoken") == ["First paragraph.", "onetwo", "Last words."]
    assert page.locator("#spoken").get_attribute("aria-live") == "polite"
    assert page.locator("#messages").evaluate("list => list.closest('[aria-live], [role=log]')") is None
    page.reload()
    page.locator(".message").nth(1).wait_for()
    assert page.locator("#spoken").inner_text() == ""  # an old answer is no news


def test_everything_by_keyboard_alone(open_page: Any, fake: Fake):
    page = open_page(reduced_motion="reduce")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    finished(page)
    assert fake.bodies[-1]["messages"][0]["content"] == "line one\nline two"
    reached = walk(page)
    for name in ("Copy answer", "Answer again", "Delete answer", "Copy message", "Edit and ask again"):
        assert name in reached
    for name in (
        "Settings",
        "Dark mode",
        "Keyboard shortcuts",
        "New chat",
        "Export and import",
        "Add pictures",
        "Send",
    ):
        assert name in reached
    assert any(name.startswith("Delete: line one") for name in reached)
    page.get_by_label("Answer again").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(100)
    finished(page)
    assert len(fake.bodies) == 2
    assert page.evaluate("document.activeElement.id") == "composer-text"
    page.get_by_label("Delete with its answer").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "composer-text"


def walk(page: Any) -> list[str]:
    """Names of all that Tab reaches, each of which must show the focus."""
    reached = []
    page.evaluate("document.activeElement.blur()")
    border = page.evaluate("getComputedStyle(document.getElementById('composer')).borderTopColor")
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline, visible = page.evaluate(
            """(border) => {
                const e = document.activeElement;
                if (e === document.body) return ["", true, true]; // between the last and the first
                const { outlineStyle, outlineWidth } = getComputedStyle(e);
                const isField = e.id === "composer-text"; // its form shows the focus
                const isOutlined = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
                return [e.ariaLabel ?? e.textContent.trim(),
                        isField ? getComputedStyle(e.form).borderTopColor !== border : isOutlined,
                        e.checkVisibility({ opacityProperty: true })];
            }""",
            border,
        )
        assert outline, name
        assert visible, name
        if reached and name == reached[0]:
            break
        reached.append(name)
    return reached


def test_shortcuts(page: Any):
    ask(page, "One")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "composer-text"
    page.keyboard.type("/?")
    assert page.input_value("#composer-text") == "/?"  # in a field they are letters
    page.fill("#composer-text", "")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keyboard").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Control+Shift+O")
    page.locator("#welcome").wait_for()
    page.click("#open-settings")
    page.get_by_label("Single keys").uncheck()
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    assert page.get_by_role("dialog").count() == 0


def test_an_input_methods_enter_does_not_send(page: Any, fake: Fake):
    page.fill("#composer-text", "にほん")
    event = {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True}
    page.dispatch_event("#composer-text", "keydown", event)
    page.wait_for_timeout(100)
    assert fake.bodies == []


PHONE = {"viewport": {"width": 360, "height": 680}, "has_touch": True, "is_mobile": True}


def test_on_a_phone(open_page: Any, fake: Fake):
    page = open_page(**PHONE, may_fail=True)
    fill(page, fake)
    page.get_by_label("Close").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(
        "document.getElementById('scroll').scrollWidth <= document.getElementById('scroll').clientWidth"
    )
    assert not page.locator("#sidebar").is_visible()
    sides = page.evaluate(
        """() => [...document.querySelectorAll("button")]
            .filter((b) => b.checkVisibility() && !b.closest(".failure, .notice, #attached, .code"))
            .map((b) => [b.getBoundingClientRect(), b.outerHTML.slice(0, 100)])
            .map(([{ width, height }, html]) => [Math.min(width, height), html])"""
    )
    assert len(sides) > 10
    assert [html for side, html in sides if side < 32] == []
    page.get_by_label("Show the list of chats").tap()
    assert page.locator("#main").evaluate("main => main.inert")
    assert page.evaluate("document.activeElement.id") == "hide-sidebar"
    page.keyboard.press("Escape")
    assert not page.locator("#sidebar").is_visible()
    assert page.evaluate("document.activeElement.id") == "show-sidebar"
    page.get_by_label("Show the list of chats").tap()
    page.locator("#chats a").tap()
    assert not page.locator("#sidebar").is_visible()
    page.locator("#open-settings").tap()
    assert page.locator("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")


def test_a_fingers_enter_begins_a_new_line(open_page: Any, fake: Fake):
    page = open_page(**PHONE)
    page.fill("#composer-text", "one")
    page.press("#composer-text", "Enter")
    page.locator("#composer-text").press_sequentially("two")
    page.locator("#send").tap()
    finished(page)
    assert fake.bodies[-1]["messages"][0]["content"] == "one\ntwo"


@pytest.mark.parametrize(("choice", "moves"), [("reduce", False), ("no-preference", True)])
def test_reduced_motion(open_page: Any, choice: str, moves: bool):
    page = open_page(reduced_motion=choice)
    page.fill("#composer-text", "slow")
    page.press("#composer-text", "Enter")
    page.locator(f"{ANSWERS}.live").get_by_text("word3").wait_for()
    assert page.evaluate("document.getAnimations().length > 0") == moves
    page.click("#stop")
    finished(page)


def test_the_view_follows_the_answer_unless_one_scrolls_up(open_page: Any, fake: Fake):
    page = open_page(viewport={"width": 900, "height": 500})
    fake.says["Long"] = "\n\n".join(f"Paragraph {i}." for i in range(120))
    left = "(([s]) => s.scrollHeight - s.scrollTop - s.clientHeight)(document.querySelectorAll('#scroll'))"
    ask(page, "Long")
    page.wait_for_timeout(200)
    assert page.evaluate(left) < 5
    # An event of the view's own scrolling that comes when the answer has grown again is nobody's wish to leave the end.
    page.evaluate("""() => {
        document.querySelector("#column").append(Object.assign(document.createElement("div"), {style: "height: 99px"}));
        document.querySelector("#scroll").dispatchEvent(new Event("scroll"));
    }""")
    page.wait_for_timeout(200)
    assert page.evaluate(left) < 5
    page.fill("#composer-text", "slow")
    page.press("#composer-text", "Enter")
    page.locator(f"{ANSWERS}.live").get_by_text("word3").wait_for()
    page.mouse.move(500, 200)
    page.mouse.wheel(0, -900)
    page.wait_for_timeout(500)
    before = page.evaluate(left)
    assert before > 500
    page.locator(f"{ANSWERS}.live").get_by_text("word40").wait_for()
    assert page.evaluate(left) >= before
    page.get_by_label("Go to the newest message").click()
    page.wait_for_timeout(300)
    assert page.evaluate(left) < 5
    page.click("#stop")
    finished(page)
