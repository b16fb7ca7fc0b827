"""Chat templates: carried as they are, but for Llama 3.2 Vision's old one."""

import json
import logging

import factories
import pytest
from old_template import OLD

from pyvllama.conversion import convert
from pyvllama.conversion.chat_templates import corrected
from pyvllama.conversion.pipeline import plan_conversion
from pyvllama.errors import PromptError
from pyvllama.template import ChatTemplate

REFORMATTED = (
    OLD.replace("    {%- set", "{%- set")
    .replace("{#- Error out if there are images and system message #}\n", "")
    .replace("{#- System message if there are no images #}\n", "")
    .replace('== ""', "== ''")
    .replace("\n\n", "\n")
)
# A classifier's template, as Llama Guard's: no system prompt, its own rules, variables of its own.
GUARD = """{%- if not categories is defined %}{%- set categories = {"S1": "Violent Crimes."} %}{%- endif %}
{{- bos_token }}{{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
{%- if messages[0].role != 'user' %}{{- raise_exception("Conversation roles must start with user.") }}{%- endif %}
{{- 'Task: Check if there is unsafe content. Categories:\\n' }}
{%- for key in categories %}{{- key + ': ' + categories[key] }}{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{{- message.content | trim }}{%- else %}
        {%- for part in message.content %}
            {{- '<|image|>' if part.type == 'image' else part.text | trim }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{{- '<|eot_id|><|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
"""

SYSTEM = {"role": "system", "content": "Speak like a pirate."}
TEXT = {"role": "user", "content": "Who are you?"}
PICTURE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A ship."}]}


def render(source, *messages):
    return ChatTemplate(source, bos_token="<|begin_of_text|>").render(messages)


def checkpoint_with(tmp_path, template, file="chat_template.json"):
    directory = factories.write_checkpoint(tmp_path / "model", "small")
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    del tokenizer["chat_template"]
    (directory / "chat_template.json").unlink()
    if file == "tokenizer_config.json":
        tokenizer["chat_template"] = template
    elif file.endswith(".json"):
        (directory / file).write_text(json.dumps({"chat_template": template}))
    else:
        (directory / file).write_text(template, newline="")
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return directory


def template_and_notes(directory, tmp_path):
    plan = plan_conversion(directory, tmp_path / "out", text_type="f32", mmproj_type="f32")
    template = plan.text[0].metadata["tokenizer.chat_template"][1]
    assert plan.mmproj.metadata["clip.mllama.chat_template"][1] == template
    return template, plan.notes


@pytest.mark.parametrize("old", [OLD, REFORMATTED], ids=["as published", "reformatted"])
def test_the_old_template_learns_system_prompts_beside_images(old):
    new = corrected(old)
    with pytest.raises(PromptError, match="incompatible with system messages"):
        render(old, SYSTEM, PICTURE)
    assert render(new, SYSTEM, PICTURE) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nSpeak like a pirate."
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    for messages in ((TEXT,), (SYSTEM, TEXT), (PICTURE,), (PICTURE, ANSWER, TEXT), (TEXT, ANSWER, PICTURE)):
        assert render(new, *messages) == render(old, *messages)


def test_nothing_else_of_it_changes():
    old, new = OLD.splitlines(), corrected(OLD).splitlines()
    assert [line for line in old if line not in new] == [
        "{#- Error out if there are images and system message #}",
        '{%- if image_ns.has_images and not system_message == "" %}',
        '    {{- raise_exception("Prompting with images is incompatible with system messages.") }}',
        "{#- System message if there are no images #}",
        "{%- if not image_ns.has_images %}",
    ]
    assert [line for line in new if line not in old] == [
        "    {%- set user_supplied_system_message = true %}",
        "    {%- set user_supplied_system_message = false %}",
        "{#- System message if there are no images, or if the user supplied one #}",
        "{%- if user_supplied_system_message or not image_ns.has_images %}",
    ]


@pytest.mark.parametrize(
    "source", [GUARD, corrected(OLD), "", OLD.replace("image_ns", "pictures"), OLD + OLD, "{{- messages }}"]
)
def test_other_templates_are_not_corrected(source):
    assert corrected(source) is None


@pytest.mark.parametrize("blank", [" ", "\t", "\n"])
def test_a_hostile_template_takes_no_time(blank):
    """Expressions that try every split of a run of blanks would take hours."""
    piece = "{%- set messages = messages[1:] %}" + blank * 100_000
    assert corrected(OLD + piece * 3) is not None
    assert corrected(piece + OLD.replace("{%- set messages", blank * 100_000 + "{%- set messages")) is not None


@pytest.mark.parametrize("file", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_converted_with_the_correction_and_a_note(file, tmp_path, caplog):
    directory = checkpoint_with(tmp_path, OLD, file)
    template, notes = template_and_notes(directory, tmp_path)
    assert template == corrected(OLD)
    assert len(notes) == 1
    assert "refuses system prompts beside images; it is replaced by the corrected one" in notes[0]
    with caplog.at_level(logging.WARNING, "pyvllama"):
        convert(directory, tmp_path / "out", text_type="f32", mmproj_type="f32")
    assert notes[0] in caplog.text


def test_an_unknown_template_that_refuses_is_kept_and_noted(tmp_path):
    refusing = GUARD + '{{- raise_exception("Prompting with images is incompatible with system messages.") }}'
    template, notes = template_and_notes(checkpoint_with(tmp_path, refusing), tmp_path)
    assert template == refusing
    assert len(notes) == 1
    assert "it is kept" in notes[0]


@pytest.mark.parametrize("file", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_other_templates_are_carried_as_they_are(file, tmp_path):
    template, notes = template_and_notes(checkpoint_with(tmp_path, GUARD, file), tmp_path)
    assert template == GUARD
    assert notes == ()
    assert "S1: Violent Crimes.<|image|>What is it?<|eot_id|>" in render(template, PICTURE)
    with pytest.raises(PromptError, match="must start with user"):
        render(template, SYSTEM, PICTURE)


def test_generation_defaults_are_carried_as_they_are(tmp_path):
    """A classifier that samples nothing, a fine-tune with settings of its own, and no settings at all."""
    directory = checkpoint_with(tmp_path, GUARD)
    path = directory / "generation_config.json"
    own = {"do_sample": True, "temperature": 1.3, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.1}
    for given, expected in (
        (
            own,
            {"temp": 1.3, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "penalty_repeat": 1.1},
        ),
        ({"do_sample": False, "temperature": 0.6}, {"temp": 0.0}),
        ({}, {}),
    ):
        path.write_text(json.dumps(given))
        metadata = plan_conversion(directory, tmp_path / "out").text[0].metadata
        found = {key.removeprefix("general.sampling."): v for key, (_, v) in metadata.items() if "sampling" in key}
        assert found == expected
