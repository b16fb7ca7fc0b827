"""The public face: what `__all__` promises is there, sorted and documented; every error is raised by something."""

import importlib
import importlib.util
import inspect
import pkgutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import pyvllama
from pyvllama import errors

NEEDS = {"pyvllama.integrations.ray_serve": "ray"}
"""Modules that need an extra which the tests do without."""

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(pyvllama.__path__, "pyvllama.")
    if m.name != "pyvllama._native" and (m.name not in NEEDS or importlib.util.find_spec(NEEDS[m.name]))
)

PROGRAMS = {"pyvllama.cli", "pyvllama.cli.chat", "pyvllama.integrations"} | {
    name
    for name in MODULES
    if name.startswith("pyvllama.server") and hasattr(importlib.import_module(name), "__path__")
}
"""Packages that are no face of anything: their modules are imported by name."""


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order that ruff's RUF022 keeps."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


@pytest.mark.parametrize("name", ["pyvllama", *MODULES])
def test_all_is_sorted_and_importable(name):
    module = importlib.import_module(name)
    if name in PROGRAMS:
        assert not hasattr(module, "__all__")
        return
    assert sorted(set(module.__all__), key=order) == list(module.__all__)
    for exported in module.__all__:
        assert getattr(module, exported) is not None


@pytest.mark.parametrize("name", ["pyvllama", *MODULES])
def test_what_a_module_exports_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in getattr(module, "__all__", []):
        value = getattr(module, exported)
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith("pyvllama"):
            doc = value.__doc__ or ""
            assert doc and not doc.startswith(f"{exported}("), f"{name}.{exported}"  # a dataclass's own makes none


@pytest.mark.parametrize("cls", [pyvllama.LLM, pyvllama.SamplingParams, pyvllama.Pair], ids=lambda c: c.__name__)
def test_public_methods_are_documented(cls):
    members = {n: m for n, m in inspect.getmembers(cls) if not n.startswith("_") and n in vars(cls)}
    for name, member in members.items():
        if callable(member) or isinstance(member, property):
            assert inspect.getdoc(member), f"{cls.__name__}.{name}"


def test_the_public_names():
    """Adding one is a decision, taking one away breaks programs."""
    assert {n for n in pyvllama.__all__ if n not in errors.__all__} == {
        "AsyncLLM", "LLM", "Llama", "Pair", "SamplingParams", "__version__", "collect_imatrix", "convert", "errors",
        "evaluate", "export", "load", "quantize",
    }  # fmt: skip
    assert set(errors.__all__) <= set(pyvllama.__all__)


def test_the_version_is_the_distributions():
    from importlib import metadata

    assert pyvllama.__version__ == metadata.version("pyvllama")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Llama2'"):
        _ = pyvllama.Llama2


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = [line for line in errors.__doc__.splitlines() if any(mark in line for mark in "├└")]
    for line in drawn:
        name = line.split("── ")[1].split()[0]
        depth = line.index("──") // 4
        assert len(getattr(errors, name).__mro__) - len(errors.VllamaError.__mro__) == depth, name
    assert len(drawn) == len(errors.__all__) - 1


# --- every error class has a code path that raises it ---


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return tiny_pair("two_tiles")


@pytest.fixture(scope="module")
def llm(pair):
    with pyvllama.load(pair.text, pair.mmproj, n_ctx=64, n_threads=1) as llm:
        yield llm


def user(**part):
    return [{"role": "user", "content": [part]}]


def closed(pair):
    llm = pyvllama.load(pair.text, pair.mmproj, n_ctx=64, n_threads=1)
    llm.close()
    return llm


def no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{")
    return tmp_path


def serve(pair, *, max_queue=None, deadline_s=None):
    """Two requests at a server's model with one slot; raises what the second one meets."""
    import asyncio

    from pyvllama.chat_options import ChatOptions
    from pyvllama.server.served_model import ServedModel

    async def ask():
        model = ServedModel.load("x", pair.text, pair.mmproj, n_ctx=64, n_threads=1, n_slots=1, max_queue=max_queue)
        options = ChatOptions.from_options(model.model.sampling_defaults, {"max_tokens": 1})
        try:
            for _ in range(2):
                answer = await model.chat(user(type="text", text="Hi"), options, deadline_s=deadline_s)
            await answer.whole()
        finally:
            await model.close()

    asyncio.run(ask())


RAISED_BY = {
    "ConfigError": lambda llm, pair, tmp: llm.chat(user(type="text", text="Hi"), temperature=-1),
    "CheckpointError": lambda llm, pair, tmp: pyvllama.convert(no_checkpoint(tmp), tmp / "out"),
    "FormatError": lambda llm, pair, tmp: pyvllama.load(pair.mmproj, pair.text),
    "ModelNotFound": lambda llm, pair, tmp: pyvllama.load(tmp / "gone.gguf"),
    "ImageError": lambda llm, pair, tmp: llm.encode_image(b"no image"),
    "ImageTooLarge": lambda llm, pair, tmp: llm.encode_image(Image.new("1", (10000, 10000))),
    "ImageFetchRefused": lambda llm, pair, tmp: llm.encode_image("http://127.0.0.1:1/a.png"),
    "PromptError": lambda llm, pair, tmp: llm.chat([]),
    "ContextOverflow": lambda llm, pair, tmp: llm.chat(user(type="text", text="word " * 500)),
    "BackendError": lambda llm, pair, tmp: closed(pair).chat(user(type="text", text="Hi")),
    "QueueFull": lambda llm, pair, tmp: serve(pair, max_queue=0),
    "DeadlineExceeded": lambda llm, pair, tmp: serve(pair, deadline_s=1e-6),
    "Cancelled": lambda llm, pair, tmp: pyvllama.load(pair.text, pair.mmproj, progress=lambda fraction: False),
}


def test_the_table_has_every_class():
    assert set(RAISED_BY) == set(errors.__all__) - {"VllamaError"}


@pytest.mark.parametrize("name", RAISED_BY)
def test_every_class_is_raised(llm, pair, tmp_path, name):
    with pytest.raises(errors.VllamaError) as caught:
        RAISED_BY[name](llm, pair, tmp_path)
    assert type(caught.value) is getattr(errors, name)
    assert len(str(caught.value)) > 10


def test_the_example_of_the_package_docstring_runs(monkeypatch, tmp_path, capsys):
    """With a picture under the name that it uses."""
    import doctest

    from pyvllama.locate import pocket_picture

    Image.open(pocket_picture()).convert("RGB").save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestParser().get_examples(pyvllama.__doc__)[1:]
    exec(example.source, {"pyvllama": pyvllama})
    assert capsys.readouterr().out.strip()


def test_encode_image_is_reachable_and_exact(llm):
    """The same picture as array and as Pillow image: the public method adds nothing of its own."""
    array = np.full((9, 9, 3), 128, np.uint8)
    np.testing.assert_array_equal(llm.encode_image(array), llm.encode_image(Image.fromarray(array)))


def test_the_program_is_installed_under_its_name():
    from importlib import metadata

    (entry,) = (e for e in metadata.entry_points(group="console_scripts") if e.name == "pyvllama")
    result = CliRunner().invoke(entry.load(), ["--version"])
    assert result.output.strip() == f"pyvllama, version {pyvllama.__version__}"
