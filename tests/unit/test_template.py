"""Chat templates: rendered as transformers renders them, in a sandbox, with errors a person can use."""

import datetime
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_tokenizer import CHAT_TEMPLATE

from pyvllama.errors import PromptError
from pyvllama.template import ChatTemplate

LLAMA = CHAT_TEMPLATE

CONVERSATION = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A cat."},
]

# what templates do: each renders the same in transformers (test below)
TEMPLATES = {
    "llama": LLAMA,
    "blocks": "{% for m in messages %}\n  {% if loop.first %}\n  [{{ m.role }}]\n  {% endif %}\n{% endfor %}\nend\n",
    "tojson": "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}",
    "sorted json": "{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }};\n{% endgeneration %}{% endfor %}.",
    "undefined": "{{ nothing }}{{ nothing is defined }}{{ tools is none }}{{ bos_token }}{{ eos_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
}


def render(source, messages=CONVERSATION, **options):
    return ChatTemplate(source, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>").render(messages, **options)


def test_llama_conversation():
    assert render(LLAMA) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>What is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(LLAMA, add_generation_prompt=False).endswith("A cat.<|eot_id|>")


@pytest.mark.reference
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_what_transformers_renders(name):
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template(
        [CONVERSATION], chat_template=TEMPLATES[name], bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    assert render(TEMPLATES[name], add_generation_prompt=False) == theirs[0]


def test_the_clock_can_be_set():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime.datetime(2024, 12, 6))
    assert template.render([]) == "06 Dec 2024"


def test_variables_and_tools_reach_the_template():
    assert (
        render("{{ date_string }} {{ tools[0].name }}", tools=[{"name": "f"}], variables={"date_string": "D"}) == "D f"
    )


def test_a_refusal_is_told_in_the_templates_words():
    with pytest.raises(PromptError, match=r"refuses these messages: Prompting with images is incompatible"):
        render("{{ raise_exception('Prompting with images is incompatible with system messages.') }}")


@pytest.mark.parametrize("source", ["{% for m in messages %}", "{{ 1 + }}", "{% nonsense %}"])
def test_a_broken_template_is_named_at_once(source):
    with pytest.raises(PromptError, match="line 1"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[9].role.x }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ none() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_a_failing_template_is_a_prompt_error(source):
    with pytest.raises(PromptError, match="fails on these messages"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [  # CVE-2024-34359: templates of model files that ran commands
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ strftime_now.__code__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ ('{0.__class__.__init__.__globals__}').format(raise_exception) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
        "{{ messages | attr('__class__') }}{{ (messages | attr('append'))(1) }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source):
    conversation = [{"role": "user", "content": "x"}]
    try:
        text = render(source, conversation)
    except PromptError:
        text = ""
    assert text == ""
    assert conversation == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("source", ["{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends 'x' %}"])
def test_a_template_reads_no_files(source):
    with pytest.raises(PromptError):
        render(source)


def test_threads_may_share_a_template():
    template = ChatTemplate(LLAMA)
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda i: template.render([{"role": "user", "content": str(i)}]), range(200)))
    assert texts == [template.render([{"role": "user", "content": str(i)}]) for i in range(200)]
