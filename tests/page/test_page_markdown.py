"""Markdown on the page: what becomes of it, and that nothing in it ever runs or loads."""

import random
import time
from typing import Any

import pytest
from actions import ask
from fake_server import Fake

# Runs in the page: the markup that a text becomes.
RENDER = """async (text) => {
    const { renderInto } = await import("/page/markdown.js");
    const element = document.createElement("div");
    renderInto(element, text);
    return element.innerHTML;
}"""
LINK = ' target="_blank" rel="noopener noreferrer nofollow"'


@pytest.fixture(scope="module")
def module_page(browser: Any, fake_url_and_fake: Any) -> Any:
    page = browser.new_context().new_page()
    page.goto(fake_url_and_fake[0])
    yield page
    page.context.close()


CASES = {
    "plain\nlines": "<p>plain<br>lines</p>",
    "one\n\ntwo": "<p>one</p><p>two</p>",
    "# Title #": "<h3>Title</h3>",
    "###### deep": "<h6>deep</h6>",
    "#no title": "<p>#no title</p>",
    "---": "<hr>",
    "a\n---\nb": "<p>a</p><hr><p>b</p>",
    "*a* **b** ***c*** ~~d~~ ~e~": "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <del>d</del> ~e~</p>",
    "2 * 3 * 4 and snake_case_name": "<p>2 * 3 * 4 and snake_case_name</p>",
    "**bold *both* bold**": "<p><strong>bold <em>both</em> bold</strong></p>",
    "**a*": "<p>*<em>a</em></p>",
    "*a **b*": "<p>*a *<em>b</em></p>",
    "un*clos": "<p>un*clos</p>",
    "`a * b` and ``c ` d``": "<p><code>a * b</code> and <code>c ` d</code></p>",
    "`open": "<p>`open</p>",
    r"\*no\* \<b\>": "<p>*no* &lt;b&gt;</p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "1. a\n2. b\n  - c\n3. d": "<ol><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ol>",
    "3) a\n4) b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "- a\n\n- b": '<ul class="loose"><li><p>a</p></li><li><p>b</p></li></ul>',
    "- a\ngoes on\n\nafter": "<ul><li>a<br>goes on</li></ul><p>after</p>",
    "- [ ] open\n- [x] done": "<ul><li>☐ open</li><li>☑ done</li></ul>",
    "* a\n\t* b": "<ul><li>a<ul><li>b</li></ul></li></ul>",
    "In 2024. we\n2024. was": "<p>In 2024. we<br>2024. was</p>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "a & b < c > d": "<p>a &amp; b &lt; c &gt; d</p>",
    "[a *b*](https://x.org/y)": f'<p><a href="https://x.org/y"{LINK}>a <em>b</em></a></p>',
    '[a](<https://x.org/(y)> "title")': f'<p><a href="https://x.org/(y)"{LINK}>a</a></p>',
    "[a](https://x.org/f(x))": f'<p><a href="https://x.org/f(x)"{LINK}>a</a></p>',
    "[a] (b) [c](d": "<p>[a] (b) [c](d</p>",
    "see https://x.org/a_b_(c).": f'<p>see <a href="https://x.org/a_b_(c)"{LINK}>https://x.org/a_b_(c)</a>.</p>',
    "<https://x.org/>": f'<p><a href="https://x.org/"{LINK}>https://x.org/</a></p>',
    "not | a table\nat all": "<p>not | a table<br>at all</p>",
}


@pytest.mark.parametrize(("text", "html"), CASES.items())
def test_rendering(module_page: Any, text: str, html: str):
    assert module_page.evaluate(RENDER, text) == html


def test_a_table(module_page: Any):
    html = module_page.evaluate(RENDER, "before\n\n| a | *b* |\n|:-:|--:|\n| 1 | x \\| y |\n| 2 |\n\nafter")
    assert '<th class="center" scope="col">a</th><th class="right" scope="col"><em>b</em></th>' in html
    assert '<td class="center">1</td><td class="right">x | y</td>' in html
    assert '<td class="center">2</td><td class="right"></td>' in html
    assert html.endswith("</table></div><p>after</p>")


@pytest.mark.parametrize("fence", ["```", "~~~", "````"])
def test_a_block_of_code_is_as_it_was_written(module_page: Any, fence: str):
    html = module_page.evaluate(RENDER, f"{fence}html\n<b>*a*</b>\n\n\tindented\n- b\n{fence}\nafter")
    assert "<code>&lt;b&gt;*a*&lt;/b&gt;\n\n\tindented\n- b</code>" in html
    assert "<span>html</span>" in html
    assert html.endswith("</figure><p>after</p>")
    assert "<code>open</code>" in module_page.evaluate(RENDER, f"{fence}\nopen")


@pytest.mark.parametrize("alphabet", ["**_ab .", "*a ", "_a(", "**`a ", "*_[](a) ", "\\\\*`a"])
def test_emphasis_code_and_links_are_commonmarks(module_page: Any, alphabet: str):
    """Of random lines the same is made as by another reader of CommonMark."""
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py, which comes with rich")
    reader = markdown_it.MarkdownIt("commonmark")
    chosen = random.Random(0)
    lines = ["x" + "".join(chosen.choices(alphabet, k=chosen.randint(1, 16))) + "x" for _ in range(1500)]
    made = module_page.evaluate(f"async (lines) => {{ const f = {RENDER}; return Promise.all(lines.map(f)); }}", lines)
    for line, html in zip(lines, made, strict=True):
        expected = reader.render(line).strip()
        if "<a " not in expected:  # relative links, which ours leaves text
            assert html == expected, line


EVIL = [
    "<script>window.evil = 1</script>",
    "<img src=x onerror='window.evil = 1'>",
    "<svg onload='window.evil = 1'>",
    "<iframe src='javascript:parent.evil = 1'></iframe>",
    "<a href='javascript:window.evil = 1'>click</a>",
    "[click](javascript:window.evil=1)",
    "[click](JaVaScRiPt:window.evil=1)",
    "[click](&#106;avascript:window.evil=1)",
    "[click](java\tscript:window.evil=1)",
    "[click](<javascript:window.evil=1>)",
    "[click](data:text/html,<script>parent.evil=1</script>)",
    "[click](vbscript:x)",
    "[click](file:///etc/passwd)",
    "![x](javascript:window.evil=1)",
    "![x](https://evil.example/pixel.png)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "<javascript:window.evil=1>",
    "`<script>window.evil = 1</script>`",
    "```html\n<script>window.evil = 1</script>\n```",
    "```<img src=x onerror=window.evil=1>\nx\n```",
    "| <img src=x onerror=window.evil=1> | b |\n|---|---|\n| <script>window.evil=1</script> | c |",
    "- <style>body{display:none}</style>",
    "<base href='https://evil.example/'>",
    "<form action='https://evil.example'><input name=q></form>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    'https://x.org/"onmouseover="window.evil=1',
    '[a](https://x.org/"onmouseover="window.evil=1)',
    "<b\x00>x</b>",
    "\u202e<script>window.evil=1</script>",
]
ALLOWED = {
    *("p", "br", "h3", "h4", "h5", "h6", "hr", "em", "strong", "del", "code", "pre", "ul", "ol", "li", "blockquote"),
    *("a", "table", "thead", "tbody", "tr", "th", "td", "div", "figure", "figcaption", "span", "button"),
}
ELEMENTS = """(answer) => [...answer.querySelectorAll("*")].map((e) => [e.localName, ...e.getAttributeNames()])"""


def test_markup_stays_text(page: Any, fake: Fake):
    for i, text in enumerate(EVIL):
        fake.says[f"evil {i}"] = text
        answer = ask(page, f"evil {i}").locator(".answer")
        for tag, *attributes in answer.evaluate(ELEMENTS):
            assert tag in ALLOWED, text
            assert not any(name.startswith("on") or name in ("src", "style", "srcdoc") for name in attributes), text
        for href in answer.evaluate("(answer) => [...answer.querySelectorAll('a')].map((a) => a.href)"):
            assert href.startswith(("https://x.org/", "https://evil.example")), text  # a link, not followed by itself
    assert page.evaluate("window.evil") is None


def test_what_the_user_writes_stays_text_everywhere(page: Any):
    text = "<img src=x onerror='window.evil = 1'> **not bold**"
    ask(page, text)
    assert page.locator(".said").inner_text() == text
    assert page.locator("#title").inner_text() == text
    page.reload()
    page.locator(".message").nth(1).wait_for()
    assert page.locator(".said").inner_text() == text
    assert page.evaluate("window.evil") is None


def test_no_script_of_ours_could_make_markup_either(module_page: Any):
    """The policy is in force: a slip would throw, not run."""
    refused = module_page.evaluate(
        """() => {
            try { document.createElement("div").innerHTML = "<b>x</b>"; return false; } catch { return true; }
        }"""
    )
    assert refused


@pytest.mark.parametrize(
    "text",
    [
        *(
            "*" * 50_000,
            "*a " * 20_000,
            "**a *b " * 8_000,
            "a* " * 20_000,
            "_*" * 20_000,
            "*a_ " * 12_000,
            "~~a" * 15_000,
        ),
        *("[" * 50_000, "[a](" * 12_000, "![" * 20_000, "]" * 50_000, "[a](b) " * 7_000, "[" * 20_000 + "](x)" * 5_000),
        *("`" * 50_000, "`a" * 25_000, " ".join("`" * n for n in range(1, 300)), "\\" * 50_000, "<" * 50_000),
        *("h" * 50_000, "https://" * 6_000, "https://" + "(" * 40_000, "https://a" + ")" * 40_000, "<http://" * 5_000),
        *("> " * 20_000, ">" * 20_000, "- " * 20_000, "1. " * 15_000, "  " * 20_000 + "x", "\n".join(["- a"] * 8_000)),
        *(
            "\n".join("  " * n + "- a" for n in range(200)),
            "#" * 50_000,
            "# " * 20_000,
            "- - - x" * 8_000,
            "|" * 30_000,
        ),
        *("|a" * 5_000 + "\n" + "|-" * 5_000 + "\n" + "|b" * 5_000, "```\n" * 12_000, "a\n" * 20_000, "&" * 50_000),
    ],
    ids=lambda text: f"{text[:12]!r}-{len(text)}",
)
def test_strange_texts_take_no_long_time(module_page: Any, text: str):
    begin = time.monotonic()
    module_page.evaluate(RENDER, text)
    assert time.monotonic() - begin < 10  # milliseconds as a rule; what is quadratic takes minutes


def test_a_growing_text_leaves_finished_blocks_alone(module_page: Any):
    """The same elements, so that what is selected stays selected; and in the end the same as if shown at once."""
    text = "# A\n\nSome *words* here\n\n- a\n- b\n\n```\ncode\n```\n\n| a |\n|---|\n| b |\n\nThe end"
    same, html, whole = module_page.evaluate(
        """async (text) => {
            const { renderInto } = await import("/page/markdown.js");
            const [growing, once] = [document.createElement("div"), document.createElement("div")];
            renderInto(growing, text.slice(0, 30));
            const first = growing.firstChild;
            for (let n = 31; n <= text.length; n++) renderInto(growing, text.slice(0, n));
            renderInto(once, text);
            return [growing.firstChild === first, growing.innerHTML, once.innerHTML];
        }""",
        text,
    )
    assert same
    assert html == whole


# --- the stream of events ---


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_read_however_they_are_cut(module_page: Any, size: int, end: str):
    lines = [
        ": comment",
        'data: {"a": "é🦙"}',
        "",
        "event: x",
        "data:two",
        "data: lines",
        "",
        "id: 1",
        "",
        "data: last",
        "",
        "data: cut",
    ]
    read = module_page.evaluate(
        """async ([text, size]) => {
            const { events } = await import("/page/stream.js");
            const bytes = new TextEncoder().encode(text);
            const body = new ReadableStream({
                start(controller) {
                    for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
                    controller.close();
                },
            });
            const found = [];
            for await (const data of events(body)) found.push(data);
            return found;
        }""",
        [end.join(lines), size],
    )
    assert read == ['{"a": "é🦙"}', "two\nlines", "last"]
