"""The interactive chat of `pyvllama run`, on a terminal as a person has one."""

import json
import shutil
import stat
import sys
import time

import pytest
from terminal import ALT_ENTER, CTRL_C, CTRL_D, HANGS_S, PASTE_OFF, PASTE_ON, TAB, UP, Terminal, shown

ANSWER = "A yellow ring at the bottom left and an orange triangle at the bottom right."
QUESTION = "Describe the image."
RING = "What colour is the ring?"
HELLO = "Hello! Please show me an image."


@pytest.fixture
def terminal(tmp_path):
    """terminal(*options) -> `pyvllama run` with them, at its first prompt."""
    opened = []

    def open_terminal(*options, before="", columns=160, stdout=None, **environment):
        code = f"{before}\nfrom pyvllama.cli.main import main; main(prog_name='pyvllama')"
        environment = {"PYVLLAMA_DATA": str(tmp_path / "data"), **environment}
        command = (sys.executable, "-c", code, "run", "-t", "1", "--temperature", "0", *map(str, options))
        opened.append(Terminal(*command, columns=columns, stdout=stdout, **environment))
        opened[-1].read_until(PASTE_ON)
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


# --- a conversation ---


def test_a_conversation(terminal, picture, no_picture):
    chat = terminal()
    assert b"bundled pocket model" in chat.new
    assert b"/help" in chat.new

    assert chat.ask("") == ""
    assert chat.ask(f"/image {picture}") == f"Attached {picture} (200 x 200, 4 tiles)."
    answer, timings = chat.ask(QUESTION).splitlines()
    assert answer == ANSWER
    assert timings.startswith("image 4 tiles in ")

    answer, timings = chat.ask(RING).splitlines()
    assert answer == "The ring is yellow."
    assert timings.startswith("image cached")  # the conversation still holds it

    assert "notes.png" in (said := chat.ask(f"/image {no_picture}"))
    assert said.startswith("Error: ")
    assert chat.ask("/image").startswith("Error: ")
    assert chat.ask("/nonsense") == "Error: there is no command /nonsense: /help shows them all"

    assert chat.ask("/clear") == "Forgotten."
    answer, timings = chat.ask("Hello!").splitlines()
    assert answer == HELLO
    assert timings.startswith("prompt")
    chat.leave()


def test_pictures_and_a_system_prompt_from_the_command_line(terminal, picture):
    chat = terminal("-i", picture, "-s", "Be brief.", "--no-timings")
    assert chat.ask(QUESTION) == ANSWER
    assert chat.ask("/system") == "Be brief."
    chat.send("/exit\r")
    assert chat.program.wait(HANGS_S) == 0


def test_a_picture_that_cannot_be_read_on_the_command_line_ends_it(tmp_path, no_picture):
    code = "from pyvllama.cli.main import main; main(prog_name='pyvllama')"
    chat = Terminal(sys.executable, "-c", code, "run", "-i", str(no_picture))
    chat.read_until(b"Error: ")
    assert chat.program.wait(HANGS_S) == 2
    chat.close()


def test_a_question_too_long_is_taken_back_and_its_picture_stays(terminal, picture):
    chat = terminal("-c", "256", "--no-timings")
    chat.ask(f"/image {picture}")
    assert "n_ctx" in chat.ask("many words " * 200)
    assert chat.ask(QUESTION) == ANSWER


def test_with_context_shift_the_chat_goes_on(terminal, picture):
    chat = terminal("-c", "256", "-i", picture, "--no-timings", "--context-shift", "--max-tokens", "8")
    said = [chat.ask(QUESTION)] + [chat.ask(RING) for _ in range(14)]
    notes = ["The context is full" in text for text in said]
    assert notes == sorted(notes)
    assert (notes[0], notes[-1]) == (False, True)
    assert not any("Error" in text for text in said)
    assert "without its oldest" in said[notes.index(True)]
    assert "last turn alone" in chat.ask("many words " * 200)


def test_several_pictures(terminal, picture):
    other = picture.with_name("02_wide.png")
    chat = terminal("-i", picture)
    _, answer, timings = chat.ask(f"{other} What differs?").splitlines()
    assert answer
    assert timings.startswith("image 6 tiles in ")
    assert [line.split()[0] for line in chat.ask("/images").splitlines()] == ["turn", "turn"]
    chat.ask(f"/image {other}")
    assert chat.ask("/images").splitlines()[2].startswith("attached  ")
    assert chat.ask("/images drop") == "1 picture dropped."
    assert len(chat.ask("/images").splitlines()) == 2


def test_pictures_are_found_in_what_is_typed(terminal, picture, no_picture, tmp_path):
    chat = terminal("--no-timings")
    blanks = shutil.copy(picture, tmp_path / "my ring's picture.png")
    uri = blanks.as_uri()
    for line in (f'{QUESTION} "{blanks}"', f"{uri} {QUESTION}", f"\\image {picture} {QUESTION}"):
        attached, answer = chat.ask(line).splitlines()
        assert attached.startswith("Attached ")
        assert answer == ANSWER
        chat.ask("/clear")
    assert "Attached" in chat.ask(str(picture))  # alone it waits for a question
    assert chat.ask(QUESTION) == ANSWER

    said = chat.ask(f"Look at {no_picture}")
    assert said.startswith("Error: ")
    chat.read_until(f"Look at {no_picture}".encode())  # stands there again to be changed
    chat.press(CTRL_C)
    assert chat.ask("/images").startswith("turn 1")


def test_undo_and_retry(terminal, picture):
    chat = terminal("--no-timings")
    assert "nothing to take back" in chat.ask("/undo")
    assert "no question yet" in chat.ask("/retry")
    chat.ask(f"/image {picture}")
    assert chat.ask(QUESTION) == ANSWER
    assert chat.ask(RING) == "The ring is yellow."
    assert chat.ask("/retry") == "The ring is yellow."
    assert chat.ask("/undo") == f"Taken back: {RING}"
    assert chat.ask("/retry") == ANSWER
    assert chat.ask("/undo") == f"Taken back: {QUESTION} and 1 picture"
    assert chat.ask("Hello!") == HELLO
    assert chat.ask("/images").startswith("There are no pictures")


def test_options_and_timings(terminal):
    chat = terminal("--top-k", "7", "--no-timings")
    listed = chat.ask("/set")
    assert "* top_k" in listed
    assert "  top_p" in listed
    assert chat.ask("/set max-tokens 2") == "max_tokens is 2 now."
    answer, note = chat.ask("Hello!").splitlines()
    assert answer == HELLO[: len(answer)] != HELLO
    assert note.startswith("The answer is cut off")
    assert chat.ask("/set max_tokens default") == "max_tokens is as the model has it now."
    assert chat.ask("/retry") == HELLO
    assert chat.ask("/set temperature warm").startswith("Error: temperature")
    assert chat.ask("/set top_p 7").startswith("Error: top_p")
    assert chat.ask("/set colour 7").startswith("Error: there is no option colour")
    assert chat.ask("/timings on") == "Timings are on."
    assert len(chat.ask("Hello!").splitlines()) == 2
    assert chat.ask("/timings maybe").startswith("Error: ")
    assert chat.ask("/system Be brief.") == "The system prompt is set."
    assert chat.ask("/system none") == "There is no system prompt now."


def test_help_names_every_command(terminal):
    from pyvllama.cli.chat.commands import COMMANDS

    said = terminal().ask("/help").splitlines()
    for command in COMMANDS:
        assert any(line.startswith(command.name) and line.endswith(command.help) for line in said)


def test_a_saved_conversation_goes_on_elsewhere(terminal, picture, tmp_path):
    gone = shutil.copy(picture, tmp_path / "gone.png")
    chat = terminal("--no-timings", "--seed", "3", "-s", "Be brief.")
    chat.ask(f"/image {gone}")
    assert chat.ask(QUESTION) == ANSWER
    assert chat.ask(f"/save {tmp_path / 'my chat.json'}") == f"Saved 1 turn, 1 picture to {tmp_path / 'my chat.json'}."
    assert "is no transcript" in chat.ask(f"/save {gone}")
    chat.leave()
    gone.unlink()

    saved = json.loads((tmp_path / "my chat.json").read_text())
    assert saved["options"] == {"temperature": 0.0, "seed": 3}
    chat = terminal("--no-timings")
    assert chat.ask(f"/load {tmp_path / 'my chat.json'}").splitlines() == [
        "Loaded 1 turn, 1 picture.", f">>> {QUESTION}", ANSWER,
    ]  # fmt: skip
    assert chat.ask(RING) == "The ring is yellow."
    assert chat.ask("/system") == "Be brief."
    assert chat.ask(f"/load {tmp_path / 'other.json'}").startswith("Error: ")
    assert "1 picture" in chat.ask(f"/save {tmp_path / 'my chat.json'}")


# --- the clipboard ---


def fake_clipboard(folder, types, content):
    """An `xclip` that has this content."""
    folder.mkdir()
    shutil.copy(content, folder / "content")
    program = folder / "xclip"
    lines = ["#!/bin/sh", "for last; do :; done", 'if [ "$last" = TARGETS ]']
    program.write_text("\n".join([*lines, f"then echo {types}", f"else cat {folder}/content; fi", ""]))
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "DISPLAY": ":0", "WAYLAND_DISPLAY": ""}


@pytest.mark.skipif(sys.platform == "darwin", reason="has a clipboard of its own")
def test_a_picture_from_the_clipboard(terminal, picture, tmp_path):
    environment = fake_clipboard(tmp_path / "bin", "TARGETS image/png", picture)
    chat = terminal("--no-timings", **environment)
    assert chat.ask("/paste") == "Attached the clipboard (200 x 200, 4 tiles)."
    assert chat.ask(QUESTION) == ANSWER

    (tmp_path / "uris").write_text(f"{picture.as_uri()}\r\n")
    environment = fake_clipboard(tmp_path / "bin2", "text/uri-list", tmp_path / "uris")
    assert terminal("--no-timings", **environment).ask(f"/paste {QUESTION}").splitlines()[1] == ANSWER

    environment = fake_clipboard(tmp_path / "bin3", "UTF8_STRING", tmp_path / "uris")
    assert terminal(**environment).ask("/paste").startswith("Error: the clipboard holds no picture")
    environment["DISPLAY"] = ""
    assert "xclip" in terminal(**environment).ask("/paste")


# --- keys ---


def test_several_lines(terminal, tmp_path):
    chat = terminal("--no-timings")
    history = tmp_path / "data" / "history"

    def last_entry():
        return [line[1:] for line in history.read_text().rpartition("\n# ")[2].splitlines()[1:]]

    for keys, lines in (
        (b"Hello" + ALT_ENTER + b"you", ["Hello", "you"]),
        (b"Hello \\\ryou", ["Hello \\", "you"]),
        (b'"""Hello\r/exit\r"""', ['"""Hello', "/exit", '"""']),
        (b"\x1b[200~Hello\r\nyou\x1b[201~", ["Hello", "you"]),  # pasted
    ):
        assert chat.ask(keys)
        assert last_entry() == lines
    saved = tmp_path / "chat.json"
    chat.ask(f"/save {saved}")
    said = [m["content"] for m in json.loads(saved.read_text())["messages"] if m["role"] == "user"]
    assert said == ["Hello\nyou", "Hello \nyou", "Hello\n/exit", "Hello\nyou"]


def test_a_long_paste_arrives_whole(terminal, tmp_path):
    chat = terminal("--no-timings", "-c", "256")
    text = "\r".join(f"line {i} of 日本語" for i in range(500))
    assert "n_ctx" in chat.ask(f"\x1b[200~{text}\x1b[201~")
    assert chat.ask("Hello!") == HELLO


def test_history_is_private_and_comes_back(terminal, tmp_path):
    chat = terminal("--no-timings")
    chat.ask("Hello!")
    chat.leave()
    history = tmp_path / "data" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    chat = terminal("--no-timings")
    assert chat.ask(UP) == HELLO
    chat.leave()

    before = history.read_bytes()
    chat = terminal("--no-timings", "--no-history")
    chat.ask("A secret.")
    assert chat.ask(UP)
    chat.leave()
    assert history.read_bytes() == before


def test_without_a_place_for_the_history_there_is_a_chat(terminal, tmp_path):
    (tmp_path / "file").touch()
    assert terminal("--no-timings", PYVLLAMA_DATA=str(tmp_path / "file" / "below")).ask("Hello!") == HELLO


def test_tab_completes_commands_and_paths(terminal, picture, tmp_path):
    shutil.copy(picture, tmp_path / "a picture.png")
    chat = terminal("--no-timings")
    for typed, completed, rest in (
        (b"/tim", b"ings", " on"),  # the menu that comes while typing says so, too
        (b"/timings of", b"f", ""),
        (f"/image {tmp_path}/a p".encode(), b"icture.png", ""),
        (f"Look: {tmp_path}/a\\ p".encode(), b"icture.png", ""),
    ):
        chat.send(typed)
        chat.read_until(typed[-3:])
        chat.send(TAB)
        chat.read_until(completed)
        said = chat.ask(rest)
        assert said.startswith(("Timings are", "Attached")), typed


SLOW = """
import time
from pyvllama.llm import LLM
chat = LLM.chat
def slow(self, messages, *, image_progress, **options):
    for i in range(100):
        image_progress(i / 100)
        time.sleep(0.1)
    return chat(self, messages, image_progress=image_progress, **options)
LLM.chat = slow
"""


def test_a_picture_being_encoded_is_told_and_can_be_stopped(terminal, picture):
    chat = terminal("-i", picture, "--no-timings", before=SLOW)
    chat.send(f"{QUESTION}\r")
    chat.read_until(b"Looking at 01_square.png, 4 tiles")
    chat.send(CTRL_C)
    chat.read_until(b"Stopped.")
    chat.read_until(PASTE_ON)
    assert chat.ask("/images").startswith("attached ")  # the question is taken back


def test_what_makes_no_sign_of_progress_is_waited_for(terminal):
    late = "import time; from pyvllama.llm import LLM; chat = LLM.chat\n"
    late += "def late(*a, **k): time.sleep(1); return chat(*a, **k)\nLLM.chat = late"
    chat = terminal("--no-timings", before=late)
    assert "Reading" in (raw := chat.ask_raw("Hello!"))
    assert shown(raw) == HELLO


ENDLESS = "from pyvllama.tokenizer import Tokenizer; Tokenizer.eog = frozenset()"


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal):
    chat = terminal("-c", "100000", "--temperature", "1", "--no-timings", before=ENDLESS)
    chat.send("Hello!\r")
    chat.read_until(PASTE_OFF)
    chat.new = chat.new.partition(PASTE_OFF)[2]
    chat.read_until(b" ")
    time.sleep(0.2)  # somewhere in the answer
    chat.send(CTRL_C)
    chat.read_until(b"Stopped.")
    chat.read_until(PASTE_ON)
    assert chat.ask("/undo") == "Taken back: Hello!"  # what came of the answer was kept
    assert shown(chat.press(b"half a line" + CTRL_C)) == ""
    chat.leave()


def test_ctrl_d_in_a_line_leaves_not(terminal):
    chat = terminal("--no-timings")
    assert chat.ask(b"Hello!" + CTRL_D) == HELLO
    chat.leave()


# --- terminals ---


def test_a_narrow_terminal_that_changes_its_width(terminal, picture):
    chat = terminal("--no-timings", columns=20)
    chat.send(f"/image {picture}")
    time.sleep(0.5)  # drawn over several lines, broken anywhere
    chat.resize(50)
    assert "Attached" in chat.ask("")
    chat.resize(9)
    assert chat.ask(QUESTION) == ANSWER  # the terminal breaks lines, we don't: it can be copied


def test_an_answer_has_styles_and_the_same_characters(terminal):
    styled = "import pyvllama.llm; pyvllama.llm.LLM.chat = lambda *a, **k: iter(" + repr(
        [
            {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
            for text in ("# Ti", "tle\n*", "*bold** `co", "de` \x1b[2J\x07日本", "語")
        ]
        + [{"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {}, "timings": {}}]
    ) + ")"  # fmt: skip
    raw = terminal("--no-timings", before=styled).ask_raw("Hello!")
    assert "\x1b[1m# Ti\x1b[0m\x1b[1mtle\x1b[0m\r\n\x1b[1m**bold**\x1b[0m" in raw
    assert "\x1b[36m`co\x1b[0m\x1b[36mde`\x1b[0m" in raw
    assert "\x1b[2J" not in raw  # a model does not clear the screen
    assert shown(raw).splitlines() == ["# Title", "**bold** `code` �[2J�日本語"]
    raw = terminal("--no-timings", before=styled, NO_COLOR="1").ask_raw("Hello!")
    assert "\x1b[36m" not in raw


def test_thumbnails(terminal, picture):
    chat = terminal(TERM="xterm-kitty")
    assert "\x1b_Ga=T,f=100" in chat.ask_raw(f"/image {picture}")
    assert "Attached" in chat.ask(f"/image {picture}")
    chat = terminal("--thumbnails", "sixel")
    assert "\x1bP0;1q" in chat.ask_raw(f"/image {picture}")
    for chat in (terminal(), terminal("--thumbnails", "none", TERM="xterm-kitty")):
        raw = chat.ask_raw(f"/image {picture}")
        assert not any(sequence in raw for sequence in ("\x1b_", "\x1bP", "\x1b]"))


def test_answers_into_a_pipe_are_plain_and_alone(terminal, picture, tmp_path):
    chat = terminal("-i", picture, stdout=tmp_path / "answers")
    assert ANSWER not in chat.ask(QUESTION)
    chat.ask("Hello!")
    chat.leave()
    answers = (tmp_path / "answers").read_text().splitlines()
    assert answers[0] == ANSWER
    assert len(answers) == 2


def test_a_simple_terminal(tmp_path, picture):
    code = "from pyvllama.cli.main import main; main(prog_name='pyvllama')"
    command = [sys.executable, "-c", code, "run", "-t", "1", "--no-timings"]
    chat = Terminal(*command, TERM="dumb", PYVLLAMA_DATA=str(tmp_path))
    chat.read_until(b">>> ")
    chat.send("Hello!\r")
    chat.read_until(HELLO.encode())
    chat.close()
