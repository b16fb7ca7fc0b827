"""set_fields: what ctypes lets pass without a word, it refuses."""

import ast
import ctypes
from pathlib import Path

import pytest

from pyvllama._runtime import llama_cpp, set_fields

ROOT = Path(__file__).parents[2]


def test_known_fields_arrive():
    params = llama_cpp.llama_context_default_params()
    set_fields(params, n_ctx=77, flash_attn_type=-1, kv_unified=True, rope_freq_base=2.5, cb_eval_user_data=1 << 40)
    set_fields(params, abort_callback_data=0)
    assert (params.n_ctx, params.flash_attn_type, params.kv_unified) == (77, -1, True)
    assert (params.rope_freq_base, params.cb_eval_user_data) == (2.5, 1 << 40)


def test_callbacks_and_arrays_arrive():
    params = llama_cpp.llama_model_default_params()
    callback = llama_cpp.llama_progress_callback(lambda _fraction, _data: True)
    shares = (ctypes.c_float * 2)(0.25, 0.75)
    set_fields(params, progress_callback=callback, tensor_split=shares)
    assert params.progress_callback(0.5, None) is True
    assert params.tensor_split[1] == 0.75


def test_a_field_that_is_not_there():
    params = llama_cpp.llama_model_params()
    params.use_mmap = False  # what ctypes says to it: nothing
    with pytest.raises(AttributeError, match=r"llama_model_params has no field use_mmap; it has devices, .*load_mode"):
        set_fields(params, use_mmap=False)


@pytest.mark.parametrize(
    "given", [{"kv_unified": 1}, {"n_ctx": True}, {"flash_attn_type": False}, {"n_ctx": "8"}, {"kv_unified": "no"}]
)
def test_a_value_of_another_kind(given):
    with pytest.raises(TypeError):
        set_fields(llama_cpp.llama_context_default_params(), **given)


@pytest.mark.parametrize("given", [{"n_ctx": 1 << 32}, {"n_ctx": -1}, {"n_threads": 1 << 31}, {"type_k": 1 << 40}])
def test_a_number_that_does_not_fit(given):
    with pytest.raises(OverflowError):
        set_fields(llama_cpp.llama_context_default_params(), **given)


def assigned_fields(tree):
    """(line, what makes the struct, name) of every `x.name = ...` where x is what a `llama_*_default_params()` gave."""
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef):
            continue
        makers = {
            target.id: node.value.func.attr
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
            if isinstance(node.value.func, ast.Attribute) and node.value.func.attr.endswith("_default_params")
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = node.value.id if isinstance(node.value, ast.Name) else ""
                if name in makers:
                    yield node.lineno, makers[name], node.attr


@pytest.mark.parametrize("folder", ["pyvllama", "tools", "tests"])
def test_structs_are_filled_by_set_fields(folder):
    found = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, maker, name in assigned_fields(ast.parse(path.read_text(encoding="utf-8"))):
            known = {field for field, *_ in getattr(llama_cpp, maker)()._fields_}
            # programs that measure llama.cpp alone do not import pyvllama: their names must be right, at least
            if path.parent.name != "bench" or name not in known:
                found.add(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not found


def test_such_assignments_are_found():
    source = "def f():\n    p = llama_cpp.llama_model_default_params()\n    p.a, p.b = 1, 2\n    q.c = p.d\n"
    assert {(line, name) for line, _, name in assigned_fields(ast.parse(source))} == {(3, "a"), (3, "b")}
