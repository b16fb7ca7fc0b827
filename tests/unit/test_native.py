"""The compiled extension: its stub says what it is, its errors are our classes, its callbacks can stop it."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from cases import canvas_case
from tiny_configs import CONFIGS

import pyvllama
from pyvllama._runtime import native
from pyvllama.errors import BackendError, Cancelled, ConfigError, FormatError
from pyvllama.locate import pocket_pair

STUB = ast.parse((Path(pyvllama.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
CONFIG = CONFIGS["two_tiles"]
PIXELS, RATIO_ID = canvas_case(CONFIG, (2, 1)).images[0]


# --- the stub ---


def stub_members(body):
    """name -> its node, of a module's or a class's body; imports and docstrings left out."""
    found = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = node
    return found


def extension_members(owner):
    """Public names of the extension or of one of its classes, and __init__ where a class has one of its own."""
    public = {name for name in vars(owner) if not name.startswith("_")}
    init = getattr(vars(owner).get("__init__"), "__nb_signature__", None) if inspect.isclass(owner) else None
    return public | ({"__init__"} if init else set())


def signature(text):
    """A `def` line as its names, kinds, defaults and the kinds of its types; nanobind's array types need help."""
    text = re.sub(r"(numpy\.)?ndarray\[[^]]*\]", "ndarray", text)
    (function,) = ast.parse(f"{text}: ...").body
    return describe(function)


def kind_of(annotation):
    """An annotation as far as both sides can say it: of containers only which, of arrays only that they are."""
    if annotation is None:
        return None
    text = ast.unparse(annotation)
    text = re.sub(r"Callable\[.*?\] \| None|object \| None", "callback", text)
    text = re.sub(r"(npt\.NDArray\[[^]]*\]|ndarray)", "array", text)
    text = re.sub(r"(pyvllama\._native|collections\.abc)\.", "", text)
    return re.sub(r"^(tuple|dict)\b.*", r"\1", text)


def describe(function):
    a = function.args
    positional = a.posonlyargs + a.args
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults + a.kw_defaults
    arguments = [
        (arg.arg, arg in a.kwonlyargs, kind_of(arg.annotation), ast.unparse(default) if default else "required")
        for arg, default in zip(positional + a.kwonlyargs, defaults, strict=True)
        if arg.arg != "self"
    ]
    return arguments, kind_of(function.returns)


def nanobind_signature(function):
    ((text, _, defaults),) = function.__nb_signature__
    text = re.sub(r"\\(\d+)", lambda m: repr(defaults[int(m[1])]), text)
    return signature(text.replace("def (self)", "def getter(self)"))


STUB_CLASSES = [node.name for node in STUB.body if isinstance(node, ast.ClassDef)]


def test_the_stub_has_every_name_of_the_extension():
    assert set(stub_members(STUB.body)) == extension_members(native)


@pytest.mark.parametrize("name", STUB_CLASSES)
def test_the_stub_has_every_member(name):
    node = stub_members(STUB.body)[name]
    assert set(stub_members(node.body)) == extension_members(getattr(native, name))


def callables():
    """(node of the stub, function of the extension) of everything that has a signature."""
    found = []
    for name, node in stub_members(STUB.body).items():
        if isinstance(node, ast.FunctionDef):
            found.append(pytest.param(node, getattr(native, name), id=name))
        elif isinstance(node, ast.ClassDef):
            for member, function in stub_members(node.body).items():
                real = vars(getattr(native, name))[member]
                found.append(pytest.param(function, getattr(real, "fget", real), id=f"{name}.{member}"))
    return found


@pytest.mark.parametrize(("stub", "real"), callables())
def test_signatures_are_equal(stub, real):
    assert describe(stub) == nanobind_signature(real)


@pytest.mark.parametrize(("stub", "real"), callables())
def test_what_is_more_than_a_setter_is_documented(stub, real):
    ((_, doc, _),) = real.__nb_signature__
    takes_options = len(describe(stub)[0]) > 1 and stub.name != "__init__"
    is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in stub.decorator_list)
    assert doc or not (takes_options or is_property)


@pytest.mark.parametrize("name", STUB_CLASSES)
def test_classes_are_documented(name):
    assert getattr(native, name).__doc__.strip()


def test_module_constants_are_what_the_stub_says():
    assert re.fullmatch(r"\d+\.\d+\.\d+", native.llama_cpp_python_version)
    assert re.fullmatch(r"[0-9a-f]{7,40}", native.llama_cpp_commit)


# --- errors are the classes of pyvllama.errors ---


@pytest.fixture(scope="module")
def path(tiny_pair):
    return tiny_pair("two_tiles").mmproj


@pytest.fixture
def mmproj(path):
    return native.Mmproj(str(path))


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(FormatError, match=r"a\.gguf"):
        native.Mmproj(str(tmp_path / "a.gguf"))


def test_a_text_file_is_no_mmproj(tiny_pair):
    text = tiny_pair("two_tiles").text
    with pytest.raises(FormatError, match=text.name):
        native.Mmproj(str(text))


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"cross_kv_type": "q9_0"}], ids=str)
def test_unknown_names_are_value_errors(path, options):
    (name,) = options.values()
    with pytest.raises(ValueError, match=name):
        native.Mmproj(str(path), **options)


def test_kernels_that_there_are_not(path, monkeypatch):
    monkeypatch.setenv("PYVLLAMA_CPU_KERNELS", "abacus")
    with pytest.raises(ConfigError, match=r"PYVLLAMA_CPU_KERNELS is 'abacus'; this CPU can run: .*ggml"):
        native.Mmproj(str(path))


ROWS = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)


@pytest.mark.parametrize(
    "call",
    [
        lambda: native.quantize(ROWS, "q9_0"),
        lambda: native.quantize(ROWS[:, :100].copy(), "q4_K"),
        lambda: native.quantize(ROWS, "iq2_xxs"),
        lambda: native.quantize(ROWS, "q4_K", imatrix=np.ones(255, np.float32)),
        lambda: native.dequantize(np.zeros((2, 143), np.uint8), "q4_K"),
        lambda: native.type_size("q9_0"),
    ],
    ids=["type", "no whole blocks", "needs an imatrix", "imatrix of another width", "rows of no whole blocks", "size"],
)
def test_what_cannot_be_quantized_is_a_value_error(call):
    with pytest.raises(ValueError, match=r"\w"):
        call()


def test_a_batch_whose_rows_were_missed_is_a_backend_error(mmproj):
    """llama_decode said that all went well, and the hook was not shown a single row."""
    states = mmproj.encode(PIXELS, RATIO_ID)[0]
    hook = native.DecodeHook(mmproj)
    hook.begin([0, 0], [[states]])
    with pytest.raises(BackendError):
        hook.end(True)
    hook.begin([-1], [])  # and the next batch begins afresh
    hook.end(True)


# --- callbacks ---


@pytest.fixture(scope="module")
def repacked():
    """A file with weights that loading has to copy; what is mapped takes no time and tells nothing."""
    path = str(pocket_pair().mmproj)
    mapped, copied = (native.Mmproj(path, repack=repack).device_bytes for repack in (False, True))
    if mapped == copied:
        pytest.skip("this CPU has no repacked layouts")
    return path


def test_loading_tells_its_progress(repacked):
    seen = []
    native.Mmproj(repacked, progress=seen.append)
    assert seen
    assert seen == sorted(seen)
    assert all(0 <= fraction <= 1 for fraction in seen)


def test_encoding_tells_its_progress(mmproj):
    seen = []
    mmproj.encode(PIXELS, RATIO_ID, progress=seen.append)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[0] >= 0
    assert seen[-1] == 1 and seen.count(1) == 1, "whoever counts pictures counts ends"


def test_only_false_stops(mmproj):
    for answer in (None, True, 0, "", []):
        assert mmproj.encode(PIXELS, RATIO_ID, progress=lambda fraction, answer=answer: answer)[0].n_bytes > 0


def test_loading_can_be_stopped(repacked):
    with pytest.raises(Cancelled):
        native.Mmproj(repacked, progress=lambda fraction: False)


def test_encoding_can_be_stopped_and_then_works(mmproj):
    want = mmproj.encode(PIXELS, RATIO_ID, want_states=True)[1]
    with pytest.raises(Cancelled):
        mmproj.encode(PIXELS, RATIO_ID, progress=lambda fraction: False)
    got = mmproj.encode(PIXELS, RATIO_ID, want_states=True)[1]
    np.testing.assert_array_equal(got, want)


class Mishap(Exception):
    pass


def test_what_a_callback_raises_arrives_and_nothing_is_broken(mmproj, repacked):
    def fail(fraction):
        raise Mishap(fraction)

    want = mmproj.encode(PIXELS, RATIO_ID, want_states=True)[1]
    for call in (
        lambda: mmproj.encode(PIXELS, RATIO_ID, progress=fail),
        lambda: native.Mmproj(repacked, progress=fail),
    ):
        with pytest.raises(Mishap):
            call()
    np.testing.assert_array_equal(mmproj.encode(PIXELS, RATIO_ID, want_states=True)[1], want)


def test_a_callback_may_encode_a_picture_itself(path):
    """Another Mmproj on the same thread, while the first one waits: the GIL is held and given back in order."""
    first, second = native.Mmproj(str(path)), native.Mmproj(str(path))
    inner = []
    want = second.encode(PIXELS, RATIO_ID, want_states=True)[1]
    progress = lambda fraction: inner.append(second.encode(PIXELS, RATIO_ID, want_states=True)[1])  # noqa: E731
    np.testing.assert_array_equal(first.encode(PIXELS, RATIO_ID, want_states=True, progress=progress)[1], want)
    np.testing.assert_array_equal(inner[0], want)


# --- lifetimes ---


def test_states_outlive_their_mmproj(path):
    mmproj = native.Mmproj(str(path))
    states = mmproj.encode(PIXELS, RATIO_ID)[0]
    hook = native.DecodeHook(mmproj)
    n_bytes = states.n_bytes
    del mmproj
    assert (states.n_bytes, states.n_tokens) == (n_bytes, 2 * CONFIG.n_positions)
    hook.begin([0], [[states]])
    hook.end(False)


def test_the_embedding_is_a_copy(mmproj):
    embd = mmproj.image_token_embd
    want = embd.copy()
    embd[:] = 0
    np.testing.assert_array_equal(mmproj.image_token_embd, want)


def test_any_number_of_threads_gives_the_same_states(mmproj):
    want = mmproj.encode(PIXELS, RATIO_ID, want_states=True)[1]
    mmproj.set_n_threads(2)
    np.testing.assert_array_equal(mmproj.encode(PIXELS, RATIO_ID, want_states=True)[1], want)
