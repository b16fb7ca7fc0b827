"""Chats on the page: asked, streamed, stopped, asked again; and what goes wrong on the way."""

import re
from collections.abc import Callable
from typing import Any

from actions import ANSWERS, ask, finished, shown, texts
from fake_server import Fake, last_text

COSTS = "picture 38 ms · prompt 24 tokens in 31 ms · answer 9 tokens at 209/s"


def test_an_answer_streams_in_with_its_costs(page: Any, fake: Fake):
    answer = ask(page, "Hello there")
    assert texts(page) == ["Hello there", "You said: Hello there"]
    assert re.fullmatch(rf"{COSTS} · [\d.]+ m?s in all", answer.locator(".costs").inner_text())
    (body,) = fake.bodies
    assert body == {
        "model": "fake-vision",
        "messages": [{"role": "user", "content": "Hello there"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_pieces_are_shown_as_they_come_and_stop_leaves_what_is_there(page: Any, fake: Fake):
    page.fill("#composer-text", "slow")
    page.click("#send")
    live = page.locator(f"{ANSWERS}.live .answer")
    live.get_by_text("word5").wait_for()
    first = len(live.inner_text())
    live.get_by_text("word15").wait_for()
    assert len(live.inner_text()) > first
    assert page.locator("#send").is_hidden()
    page.click("#stop")
    answer = finished(page)
    assert answer.locator(".state").inner_text() == "Stopped."
    assert answer.locator(".answer").inner_text().startswith("word0 word1")
    assert page.locator("#composer-text").evaluate("field => field === document.activeElement")
    page.wait_for_timeout(300)
    assert fake.n_cut == 1  # the connection was closed: the server knows
    ask(page, "And now?")  # what was said goes along
    assert [m["role"] for m in fake.bodies[-1]["messages"]] == ["user", "assistant", "user"]


def test_escape_stops(page: Any, fake: Fake):
    page.fill("#composer-text", "slow")
    page.press("#composer-text", "Enter")
    page.locator(f"{ANSWERS}.live").get_by_text("word3").wait_for()
    page.keyboard.press("Escape")
    assert finished(page).locator(".state").inner_text() == "Stopped."


def test_what_is_typed_meanwhile_stays(page: Any):
    page.fill("#composer-text", "slow")
    page.press("#composer-text", "Enter")
    page.fill("#composer-text", "a thought")
    page.press("#composer-text", "Enter")
    page.get_by_text("The answer is still being written").wait_for()
    assert page.input_value("#composer-text") == "a thought"
    page.click("#stop")
    finished(page)
    assert page.input_value("#composer-text") == "a thought"


def test_waiting_is_shown(page: Any):
    page.fill("#composer-text", "queue and think")
    page.press("#composer-text", "Enter")
    state = page.locator(f"{ANSWERS} .state")
    page.wait_for_timeout(300)
    assert state.inner_text() == "Sending …"
    state.get_by_text(re.compile(r"Sending … [12]\.\d s")).wait_for()
    state.get_by_text(re.compile(r"Reading")).wait_for()
    assert finished(page).locator(".state").is_hidden()


def test_an_answer_goes_on_while_another_chat_is_looked_at(page: Any):
    page.fill("#composer-text", "slow")
    page.press("#composer-text", "Enter")
    page.locator(f"{ANSWERS}.live").get_by_text("word3").wait_for()
    page.click("#new-chat")
    assert page.locator(".message").count() == 0
    assert page.locator("#stop").is_hidden()
    ask(page, "Something else")
    page.locator("#chats a", has_text="slow").click()
    live = page.locator(f"{ANSWERS}.live")
    live.get_by_text("word30").wait_for()
    page.click("#stop")
    finished(page)


def test_retry_writes_the_answer_anew_and_can_be_undone(page: Any, fake: Fake):
    fake.says["Hi"] = "first"
    ask(page, "Hi")
    ask(page, "More")
    fake.says["Hi"] = "second"
    page.locator(ANSWERS).first.hover()
    page.get_by_label("Answer again").first.click()
    shown(page, "second").wait_for()
    finished(page)
    assert texts(page) == ["Hi", "second"]
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "Hi"}]
    page.get_by_role("button", name="Undo").click()
    shown(page, "first").wait_for()
    assert texts(page) == ["Hi", "first", "More", "You said: More"]


def test_an_earlier_message_is_edited_and_the_rest_made_anew(page: Any, fake: Fake):
    ask(page, "One")
    ask(page, "Two")
    page.fill("#composer-text", "unsent")
    page.locator(".message.user").first.hover()
    page.get_by_label("Edit and ask again").first.click()
    assert page.input_value("#composer-text") == "One"
    assert page.locator(".replaced").count() == 3
    page.fill("#composer-text", "Uno")
    page.press("#composer-text", "Enter")
    shown(page, "You said: Uno").wait_for()
    finished(page)
    assert texts(page) == ["Uno", "You said: Uno"]
    assert page.input_value("#composer-text") == "unsent"  # it waited
    page.get_by_role("button", name="Undo").click()
    shown(page, "You said: Two").wait_for()
    assert texts(page) == ["One", "You said: One", "Two", "You said: Two"]


def test_an_edit_can_be_left(page: Any):
    ask(page, "One")
    page.press("#composer-text", "ArrowUp")
    assert page.input_value("#composer-text") == "One"
    page.keyboard.press("Escape")
    assert page.input_value("#composer-text") == ""
    assert page.locator(".edited").count() == 0
    page.press("#composer-text", "ArrowUp")
    page.get_by_role("button", name="Cancel").click()
    assert texts(page) == ["One", "You said: One"]


def test_messages_are_deleted_and_brought_back(page: Any):
    ask(page, "One")
    ask(page, "Two")
    page.get_by_label("Delete answer").last.click()
    assert texts(page) == ["One", "You said: One", "Two"]
    page.get_by_role("button", name="Get an answer").click()
    finished(page, 1)
    page.locator(".message.user").first.hover()
    page.get_by_label("Delete with its answer").first.click()
    assert texts(page) == ["Two", "You said: Two"]
    page.get_by_role("button", name="Undo").last.click()
    shown(page, "You said: One").wait_for()
    assert texts(page) == ["One", "You said: One", "Two", "You said: Two"]


def test_a_chat_that_is_deleted_while_it_is_answered_stays_deleted(page: Any, fake: Fake):
    page.fill("#composer-text", "slow")
    page.press("#composer-text", "Enter")
    page.locator(f"{ANSWERS}.live").get_by_text("word3").wait_for()
    page.locator("#chats li").hover()
    page.get_by_label("Delete: slow").click()
    page.locator("#chats a").wait_for(state="detached")
    page.wait_for_timeout(500)
    assert fake.n_cut == 1
    page.reload()
    page.locator("#model:enabled").wait_for()
    assert page.locator("#chats a").count() == 0


def test_an_edited_message_that_is_deleted_is_no_longer_edited(page: Any, fake: Fake):
    ask(page, "One")
    page.fill("#composer-text", "draft")
    page.get_by_label("Edit and ask again").click()
    page.get_by_label("Delete with its answer").click()
    assert page.locator("#composer.editing").count() == 0
    assert page.input_value("#composer-text") == "draft"
    ask(page, "Two")
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "Two"}]


def test_copy(open_page: Callable[..., Any], fake: Fake):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    fake.says["Code, please"] = "Here:\n```js\nlet a = 1;\nlet b = 2;\n```"
    answer = ask(page, "Code, please")
    answer.get_by_label("Copy answer").click()
    page.wait_for_timeout(100)
    assert page.evaluate("navigator.clipboard.readText()") == fake.says["Code, please"]
    answer.get_by_role("button", name="Copy", exact=True).click()
    page.wait_for_timeout(100)
    assert page.evaluate("navigator.clipboard.readText()") == "let a = 1;\nlet b = 2;"


def test_copy_works_without_a_secure_connection(open_page: Callable[..., Any], fake_url_and_fake: Any):
    """By plain HTTP from another machine, browsers leave several interfaces out."""
    url = fake_url_and_fake[0].replace("127.0.0.1", "page.test")
    page = open_page(url)
    assert not page.evaluate("isSecureContext")
    ask(page, "Hello").get_by_label("Copy answer").click()
    page.fill("#composer-text", "")
    page.press("#composer-text", "Control+v")
    assert page.input_value("#composer-text") == "You said: Hello"


def test_the_system_prompt_goes_first(page: Any, fake: Fake):
    page.locator("#system summary").click()
    page.fill("#system-text", "Be brief.")
    ask(page, "Hi")
    assert fake.bodies[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    page.locator(".message").nth(1).wait_for()
    assert page.input_value("#system-text") == "Be brief."
    page.click("#new-chat")
    ask(page, "Hi")
    assert [m["role"] for m in fake.bodies[-1]["messages"]] == ["user"]


def test_costs_say_what_came_from_the_cache(page: Any):
    assert "picture from cache · prompt" in ask(page, "cached").locator(".costs").inner_text()


def test_an_answer_that_was_cut_off_says_so(page: Any):
    assert "longest length" in ask(page, "long").locator(".state").inner_text()


# --- what goes wrong ---


def test_a_busy_server_says_when_to_come_again(open_page: Callable[..., Any], fake: Fake):
    page = open_page(may_fail=True)
    failure = ask(page, "busy").locator(".failure")
    assert "The server is busy" in failure.inner_text()
    assert re.search(r"Try again \(best in [67] s\)", failure.inner_text())
    page.get_by_role("button", name="Try again").click()
    finished(page)
    assert [last_text(body) for body in fake.bodies] == ["busy", "busy"]


def test_a_refusal_is_shown_as_text_and_can_be_tried_again(open_page: Callable[..., Any], fake: Fake):
    page = open_page(may_fail=True)
    failure = ask(page, "wrong").locator(".failure")
    assert "messages[0] is <b>wrong</b>" in failure.inner_text()
    page.get_by_role("button", name="Try again").click()
    finished(page)
    assert len(fake.bodies) == 2
    page.locator(".message.user").hover()
    page.get_by_label("Edit and ask again").click()
    page.fill("#composer-text", "right")
    page.press("#composer-text", "Enter")
    shown(page, "You said: right").wait_for()
    assert fake.bodies[-1]["messages"] == [{"role": "user", "content": "right"}]


def test_a_body_that_is_too_large(open_page: Callable[..., Any]):
    page = open_page(may_fail=True)
    assert "more than the server takes at once. the body is larger" in ask(page, "too large").inner_text()


def test_a_broken_connection_leaves_what_came(page: Any):
    answer = ask(page, "drop me")
    assert "broke before the answer was complete" in answer.locator(".failure").inner_text()
    assert answer.locator(".answer").inner_text().startswith("You said:")


def test_a_failure_on_the_way(page: Any):
    assert "the computation failed" in ask(page, "this fails").locator(".failure").inner_text()


def test_no_network(open_page: Callable[..., Any], fake: Fake):
    page = open_page(may_fail=True)
    page.context.set_offline(True)
    answer = ask(page, "Anybody?")
    assert "cannot be reached" in answer.locator(".failure").inner_text()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    shown(page, "You said: Anybody?").wait_for()
    assert len(fake.bodies) == 1


def test_a_server_that_comes_up_later(open_page: Callable[..., Any]):
    page = open_page(may_fail=True)
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    page.locator("#banner").get_by_text("cannot be reached").wait_for()
    page.unroute("**/v1/models")
    ask(page, "Hi")
    page.locator("#banner").wait_for(state="hidden")
    assert page.input_value("#model") == "fake-vision"


def test_the_key_is_asked_for_and_kept_only_if_wanted(open_page: Callable[..., Any], fake: Fake):
    fake.key = "sesame"
    page = open_page(may_fail=True)
    assert "asks for an API key" in page.locator("#banner").inner_text()
    failure = ask(page, "Hi").locator(".failure")
    assert "asks for an API key" in failure.inner_text()
    failure.get_by_role("button", name="Enter API key").click()
    assert page.evaluate("document.activeElement.id") == "api-key"
    page.keyboard.type("sesame")
    page.keyboard.press("Escape")
    shown(page, "You said: Hi").wait_for()  # asked again by itself
    page.locator("#banner").wait_for(state="hidden")
    assert page.evaluate("localStorage.getItem('pyvllama-key')") is None
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")
    page.reload()
    page.locator("#banner").get_by_text("asks for an API key").wait_for()
    page.get_by_role("button", name="Enter API key").first.click()
    page.keyboard.type("wrong")
    page.keyboard.press("Escape")
    page.locator("#banner").get_by_text("does not take this API key").wait_for()
    page.get_by_role("button", name="Enter API key").first.click()
    page.fill("#api-key", "sesame")
    page.get_by_label("Remember the key").check()
    page.keyboard.press("Escape")
    page.locator("#banner").wait_for(state="hidden")
    page.reload()
    page.locator("#model:enabled").wait_for()
    assert page.locator("#banner").is_hidden()
    page.click("#open-settings")
    page.get_by_label("Remember the key").uncheck()
    assert page.evaluate("localStorage.getItem('pyvllama-key')") is None


# --- settings ---


def test_settings_go_with_the_request_and_stay(page: Any, fake: Fake):
    page.click("#open-settings")
    assert page.get_attribute("#option-temperature", "placeholder") == "0.6"
    assert page.get_attribute("#option-seed", "placeholder") == "random"
    given = {"temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1, "max_tokens": 99}
    for name, value in {**given, "seed": 7}.items():
        page.fill(f"#option-{name}", str(value))
    page.keyboard.press("Escape")
    page.select_option("#model", "other-model")
    ask(page, "Hi")
    expected = {**given, "seed": 7, "model": "other-model"}
    assert {name: fake.bodies[-1][name] for name in expected} == expected
    page.reload()
    page.locator("#model:enabled").wait_for()
    ask(page, "Again")
    assert {name: fake.bodies[-1][name] for name in expected} == expected
    page.click("#open-settings")
    page.get_by_role("button", name="Back to the model's own").click()
    page.keyboard.press("Escape")
    ask(page, "Plain")
    assert not {*given, "seed"} & set(fake.bodies[-1])


def test_what_is_out_of_range_does_not_count(page: Any, fake: Fake):
    page.click("#open-settings")
    page.fill("#option-top_p", "0.5")
    page.fill("#option-top_p", "1.5")
    page.fill("#option-top_k", "1.5")
    assert page.get_attribute("#option-top_p", "aria-invalid") == "true"
    assert page.inner_text("#option-top_p-help") == "0 to 1"
    assert page.inner_text("#option-top_k-help").startswith("a whole number, 0 to ")
    page.keyboard.press("Escape")
    ask(page, "Hi")
    assert fake.bodies[-1]["top_p"] == 0.5  # the last that was right
    assert "top_k" not in fake.bodies[-1]


def test_the_system_prompt_of_new_chats(page: Any, fake: Fake):
    page.click("#open-settings")
    page.fill("#default-system", "Be kind.")
    page.keyboard.press("Escape")
    ask(page, "Hi")
    assert fake.bodies[-1]["messages"][0] == {"role": "system", "content": "Be kind."}
