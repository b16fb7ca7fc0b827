"""set_fields: what ctypes lets pass without a word, it refuses."""

import ctypes

import pytest

from pyvllama._runtime import llama_cpp, set_fields


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
    params = llama_cpp.llama_model_default_params()
    params.use_mmap = False  # what ctypes says to it: nothing
    with pytest.raises(AttributeError, match="llama_model_params has no field use_mmap; it has devices, .*load_mode"):
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
