"""What a user can say about devices: `pyvllama.load`, `pyvllama.Llama`, the commands, the server's settings."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from fake_devices import MIB
from invariants import F32_BOUND, max_error

import pyvllama
from pyvllama.cli.main import main
from pyvllama.errors import BackendError

# One padded tile's weight is rounded on a device, see test_encoding.py; a picture is one part of what text rows see.
BOUND = 3e-4
EXACT = {"kv_type": "f32", "cross_kv_type": "f32", "flash_attn": False, "n_ctx": 512, "n_threads": 1}


@pytest.fixture(scope="module")
def messages(samples):
    parts = [{"type": "image_url", "image_url": {"url": str(samples[0]["path"])}}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Describe the image."}]}]


@pytest.fixture(scope="module")
def expected(pocket_pair, messages):
    """(logits, answer, states) of the CPU."""
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, **EXACT) as llm:
        image = messages[0]["content"][0]["image_url"]["url"]
        answer = llm.chat(messages, temperature=0, max_tokens=24)["choices"][0]["message"]["content"]
        return llm.logits(messages), answer, llm.encode_image(image)


@pytest.mark.parametrize("mmproj_offload", [True, False])
@pytest.mark.parametrize("n_gpu_layers", [0, 1, 3, 5, -1])
def test_load(devices, pocket_pair, messages, expected, n_gpu_layers, mmproj_offload):
    options = EXACT | {"n_gpu_layers": n_gpu_layers, "mmproj_offload": mmproj_offload}
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, **options) as llm:
        on_gpu = n_gpu_layers != 0 and mmproj_offload
        assert llm.model.mmproj.device == ("FAKE0" if on_gpu else "CPU")
        n_text = sum(name != "cpu" for name in llm.model.placement.layers)
        # the output is the first layer to go; the last one on the CPU leaves its sum on the device
        assert n_text == (llm.model.hparams["text_n_layer_self"] if n_gpu_layers < 0 else n_gpu_layers)
        bound = BOUND if on_gpu else F32_BOUND
        assert max_error(llm.encode_image(messages[0]["content"][0]["image_url"]["url"]), expected[2]) <= 5 * bound
        assert max_error(llm.logits(messages), expected[0]) <= bound
        before = llm._session.context.hook_stats
        answer = llm.chat(messages, temperature=0, max_tokens=24)["choices"][0]["message"]["content"]
        after = llm._session.context.hook_stats
        assert answer == expected[1]
        assert after["n_blocks"] > before["n_blocks"]


def test_both_devices_are_used_in_proportion(devices, pocket_pair, messages):
    before = [devices.stats(i) for i in (0, 1)]
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_gpu_layers=-1, **EXACT) as llm:
        llm.logits(messages)
        after = [devices.stats(i) for i in (0, 1)]
        assert sorted(set(llm.model.placement.layers)) == ["FAKE0", "FAKE1"]
        assert all(b.n_used > a.n_used and b.n_nodes > a.n_nodes for a, b in zip(before, after, strict=True))
    assert [devices.stats(i).n_used for i in (0, 1)] == [stats.n_used for stats in before]


def test_a_session_file_is_for_the_same_devices(devices, pocket_pair, messages, tmp_path):
    path = tmp_path / "chat.session"
    options = EXACT | {"n_gpu_layers": -1}
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, **options) as llm:
        llm.chat(messages, temperature=0, max_tokens=4)
        llm.save_session(path)
        want = llm.chat([*messages, {"role": "user", "content": "Why?"}], temperature=0, max_tokens=8)
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, **options) as llm:
        llm.load_session(path)
        got = llm.chat([*messages, {"role": "user", "content": "Why?"}], temperature=0, max_tokens=8)
        assert got["choices"] == want["choices"]
        assert got["timings"]["image_cached"] == 1
    with (
        pyvllama.load(pocket_pair.text, pocket_pair.mmproj, **EXACT) as llm,
        pytest.raises(pyvllama.FormatError, match="session"),
    ):
        llm.load_session(path)


def test_pictures_in_files_are_found_again(devices, pocket_pair, messages, tmp_path):
    options = EXACT | {"n_gpu_layers": 3, "image_cache_dir": tmp_path}
    logits = []
    for n_cached in (0, 1):
        with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, **options) as llm:
            logits.append(llm.logits(messages))
            assert llm.chat(messages, max_tokens=1)["timings"]["image_cached"] == 1
            assert len(list(tmp_path.glob("*.states"))) == 1, n_cached
    np.testing.assert_array_equal(logits[0], logits[1])


def test_a_draft_model_goes_where_the_layers_go(devices, pocket_pair, messages, expected):
    options = EXACT | {"n_gpu_layers": -1, "draft": pocket_pair.text}
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, **options) as llm:
        answer = llm.chat(messages, temperature=0, max_tokens=24)["choices"][0]["message"]["content"]
        assert answer == expected[1]


def test_a_gpu_that_is_too_small(devices, pocket_pair):
    with (
        devices.of_size(0, devices.stats(0).n_used + MIB),
        devices.of_size(1, devices.stats(1).n_used),
        pytest.raises(BackendError, match="do not fit into FAKE"),
    ):
        pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_gpu_layers=-1)


@pytest.mark.parametrize("n_gpu_layers", [0, 3, -1])
def test_llama_of_llama_cpp_python(devices, pocket_pair, messages, expected, n_gpu_layers):
    """It places layers by itself, on both devices: rows travel where they must."""
    llm = pyvllama.Llama(
        str(pocket_pair.text), str(pocket_pair.mmproj), n_gpu_layers=n_gpu_layers, n_ctx=512, verbose=False, n_threads=1
    )
    try:
        got = llm.create_chat_completion(messages=messages, temperature=0, max_tokens=24)
        assert got["choices"][0]["message"]["content"] == expected[1]
    finally:
        llm.close()


@pytest.mark.parametrize("option", ["--mmproj-offload", "--no-mmproj-offload"])
def test_run(devices, pocket_pair, messages, expected, option, monkeypatch):
    seen = []
    load = pyvllama.load
    monkeypatch.setattr(pyvllama, "load", lambda *a, **k: seen.append(load(*a, **k)) or seen[-1])
    image = messages[0]["content"][0]["image_url"]["url"]
    arguments = ["run", pocket_pair.text, "-i", image, "--json", "--temperature", 0, "--max-tokens", 24, "-t", 1]
    arguments += ["-ngl", -1, option, "Describe the image."]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == expected[1]
    assert seen[0].model.placement.tower == ("cpu" if option.startswith("--no") else "FAKE0")
