"""Every option of `pyvllama.load` arrives where it is used; so do a server's settings."""

import dataclasses
import inspect

import pytest

import pyvllama
from pyvllama import loading
from pyvllama.context import ContextParams
from pyvllama.locate import pocket_pair
from pyvllama.server import pool_setup
from pyvllama.server.settings import Settings

# option -> another value than the default; what takes it has it by the same name
TO_MODEL = {
    "n_gpu_layers": 3, "mmproj_offload": False, "n_threads": 2, "cross_kv_type": "f32", "use_mmap": False,
    "repack": False, "progress": print,
}  # fmt: skip
TO_CONTEXT = {"n_ctx": 77, "n_batch": 33, "n_ubatch": 22, "n_threads": 2, "kv_type": "f32", "flash_attn": False}
TO_RESOLVE = {"model": "m", "mmproj": "p", "text_type": "q8_0"}
TO_CACHES = {"image_cache_bytes": 7, "image_cache_dir": "d", "image_cache_disk_bytes": 9}
DRAFTS = {"draft", "n_draft"}  # tests/api/test_draft.py, test_draft_model.py


@pytest.fixture
def given(monkeypatch):
    """given(**options) -> what Model, ContextParams, resolve and the caches are called with."""

    def load(**options):
        seen = {}

        def record(name, result=None):
            def call(*args, **kwargs):
                seen[name] = (args, kwargs)
                return result() if result else object()

            return call

        def make(model, params, images):
            seen["params"] = params

        class Closable:
            def close(self):
                pass

        with monkeypatch.context() as patch:
            patch.setattr(loading, "resolve", record("resolve", pocket_pair))
            patch.setattr(loading, "Model", record("model", Closable))
            patch.setattr(loading, "ImageStore", record("store"))
            patch.setattr(loading, "VisionCache", record("cache"))
            loading.load_as(make, **options)
        return seen

    return load


@pytest.mark.parametrize("option", TO_MODEL)
def test_to_the_model(given, option):
    assert given(**{option: TO_MODEL[option]})["model"][1][option] is TO_MODEL[option]
    assert given()["model"][1][option] is not TO_MODEL[option]


@pytest.mark.parametrize("option", TO_CONTEXT)
def test_to_the_context(given, option):
    assert getattr(given(**{option: TO_CONTEXT[option]})["params"], option) == TO_CONTEXT[option]
    assert getattr(ContextParams(), option) != TO_CONTEXT[option]


def test_threads_for_prompts_too(given):
    assert given(n_threads=2)["params"].n_threads_batch == 2


def test_to_what_finds_the_files(given):
    (model, mmproj), options = given(**TO_RESOLVE)["resolve"]
    assert {"model": model, "mmproj": mmproj, "text_type": options["text_type"]} == TO_RESOLVE


def test_to_the_caches(given):
    seen = given(**TO_CACHES)
    assert seen["cache"][0][1] == 7
    assert seen["store"][0][1:] == ("d", 9)
    assert "store" not in given()


def test_every_option_is_tested():
    tested = TO_MODEL.keys() | TO_CONTEXT.keys() | TO_RESOLVE.keys() | TO_CACHES.keys() | DRAFTS
    assert inspect.signature(pyvllama.load).parameters.keys() == tested


def test_a_server_passes_its_settings_on(monkeypatch):
    other = {**TO_MODEL, **TO_CONTEXT, **TO_CACHES}
    shared = {f.name for f in dataclasses.fields(Settings)} & inspect.signature(pyvllama.load).parameters.keys()
    assert shared - TO_RESOLVE.keys() == set(pool_setup._OF_LOAD)
    settings = Settings(parallel=3, max_queue=5, grammars=False, **{name: other[name] for name in pool_setup._OF_LOAD})
    seen = {}
    monkeypatch.setattr(pool_setup.ServedModel, "load", lambda *_, **options: seen.update(options) or Served())
    pool = pool_setup.make_pool(settings)
    pool._load(pool._default)
    assert seen == {name: other[name] for name in pool_setup._OF_LOAD} | {
        "n_slots": 3, "max_queue": 5, "grammars": False,
    }  # fmt: skip


class Served:
    on_answered = None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_ctx": 64.5}, "n_ctx must be a whole number, not 64.5"),
        ({"n_batch": 0}, "n_batch must be between 1 and"),
        ({"n_ubatch": 1 << 40}, "n_ubatch must be between 1 and"),
        ({"flash_attn": "on"}, "flash_attn must be True, False or None, not 'on'"),
        ({"n_gpu_layers": 1 << 40}, "n_gpu_layers must be a number of layers"),
        ({"n_gpu_layers": "all"}, "n_gpu_layers must be a number of layers, or -1 for all, not 'all'"),
    ],
    ids=str,
)
def test_values_that_none_takes(options, words):
    with pytest.raises(pyvllama.ConfigError, match=words):
        pyvllama.load(**{"n_ctx": 64, "n_threads": 1, **options})
