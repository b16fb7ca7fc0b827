"""Every option of every command arrives at what does the work; what it does there is tested where that is."""

import functools
import importlib
import inspect
from pathlib import Path
from unittest.mock import MagicMock

import click
import pytest
from click.testing import CliRunner

import pyvllama
from pyvllama.cli.main import main
from pyvllama.locate import pocket_pair

POCKET = pocket_pair()
LAYOUT = {
    "--kv-type bf16": ("kv_type", "bf16"),
    "--cross-kv-type f32": ("cross_kv_type", "f32"),
    "--no-repack": ("repack", False),
}
LOADING = {
    **LAYOUT,
    "-c 77": ("n_ctx", 77),
    "-t 3": ("n_threads", 3),
    "-ngl 5": ("n_gpu_layers", 5),
    "--no-mmproj-offload": ("mmproj_offload", False),
}
GPU = {name: LOADING[name] for name in ("-t 3", "-ngl 5", "--no-mmproj-offload")}
RESOLVING = {"--mmproj m.gguf": ("mmproj", "m.gguf"), "-q q8_0": ("text_type", "q8_0")}
TYPES = {
    "-q q6_k": ("text_type", "q6_k"),
    "--mmproj-type f16": ("mmproj_type", "f16"),
    "--cross-type q8_0": ("cross_type", "q8_0"),
    "--tensor-type a=f16 --tensor-type b=f32": ("tensor_types", ("a=f16", "b=f32")),
    "--imatrix a --imatrix b": ("imatrix", (Path("a"), Path("b"))),
    "--split-max-size 2G": ("split_max_bytes", 2 * 10**9),
}
WRITING = {"-t 3": ("n_threads", 3), "--overwrite": ("overwrite", True)}
FIT = {**LAYOUT, "-c 77": ("ctx_size", 77)}
SAMPLING = {
    "--max-tokens 9": ("max_tokens", 9),
    "--temperature 0.5": ("temperature", 0.5),
    "--top-p 0.5": ("top_p", 0.5),
    "--top-k 7": ("top_k", 7),
    "--min-p 0.5": ("min_p", 0.5),
    "--repeat-penalty 1.5": ("repeat_penalty", 1.5),
    "--presence-penalty 0.5": ("presence_penalty", 0.5),
    "--frequency-penalty 0.5": ("frequency_penalty", 0.5),
    "--seed 7": ("seed", 7),
    "--stop a --stop b": ("stop", ("a", "b")),
}
SETTINGS = {
    **LOADING,
    "--alias a --alias b": ("aliases", ("a", "b")),
    "--host 0.0.0.0": ("host", "0.0.0.0"),
    "--port 1234": ("port", 1234),
    "--ollama": ("manage_models", True),
    "--ollama --grace 3": ("port", 11434),
    "--api-key k --api-key l": ("api_keys", ("k", "l")),
    "--api-key-file keys": ("api_keys", ("from-file",)),
    "--cors-origin *": ("cors_origins", ("*",)),
    "--allowed-host h": ("allowed_hosts", ("h",)),
    "--grace 2m": ("grace_s", 120.0),
    "-np 3": ("parallel", 3),
    "--max-queue 3": ("max_queue", 3),
    "--timeout 3s": ("deadline_s", 3.0),
    "--keep-alive 1h": ("keep_alive_s", 3600.0),
    "--max-models 3": ("max_models", 3),
    "--image-cache cache": ("image_cache_dir", Path("cache")),
    "--media-path .": ("media_path", Path()),
    "--allow-private-urls": ("allow_private_urls", True),
    "--max-image 3": ("max_image_bytes", 3 << 20),
    "--max-body 3": ("max_body_bytes", 3 << 20),
    "--no-grammars": ("grammars", False),
    "--log-format json": ("log_format", "json"),
    "--log-prompts": ("log_prompts", True),
}
# Command -> its other arguments; and of each function that it calls, where it finds it, the options that it gives it.
COMMANDS = {
    "run": ("Hi", {
        "pyvllama.cli.run.resolve": RESOLVING,
        "pyvllama.load": {
            **LOADING,
            "--image-cache cache": ("image_cache_dir", Path("cache")),
            "-md d.gguf": ("draft", Path("d.gguf")),
            "--draft-lookup": ("draft", "lookup"),
            "--draft-lookup --draft-max 9": ("n_draft", 9),
        },
        "LLM.chat": {**SAMPLING, "--context-shift": ("context_shift", True)},
    }),
    "serve": ("", {"pyvllama.cli.serve.resolve": RESOLVING, "pyvllama.server.app.create_app": SETTINGS}),
    "caption": ("photos -o c.jsonl", {
        "pyvllama.load": {
            **GPU, "-c 77": ("n_ctx", 77), "-m x": ("model", "x"), "--mmproj m.gguf": ("mmproj", "m.gguf"),
        },
        "LLM.chat_many": {
            "--max-tokens 9": ("max_tokens", 9),
            "--temperature 0.5": ("temperature", 0.5),
            "--parallel 3": ("n_parallel", 3),
        },
    }),
    "convert": ("x -o out", {
        "pyvllama.conversion.pipeline.plan_conversion": {
            **TYPES,
            "--base b": ("base", "b"),
            "--lora a --lora b": ("lora", ("a", "b")),
            "--name n": ("name", "n"),
            "--quantized-by q": ("quantized_by", "q"),
            "--revision r": ("revision", "r"),
            "--cross-qk-order plain": ("cross_qk_order", "plain"),
            "--mmproj-only": ("mmproj_only", True),
        },
        "pyvllama.cli.convert.finish": {
            "-t 3": ("threads", 3), "--overwrite": ("overwrite", True), "--dry-run": ("dry_run", True),
        },
    }),
    "quantize": ("x.gguf -o out", {
        "pyvllama.conversion.quantization.plan_quantization": {
            **TYPES, "--allow-requantize": ("allow_requantize", True),
        },
        "pyvllama.conversion.output.write_files": WRITING,
    }),
    "export": ("x.gguf -o out", {
        "pyvllama.conversion.checkpoint_export.plan_export": {
            "--mmproj m": ("mmproj", "m"), "--dequantize": ("dequantize", True),
        },
        "pyvllama.conversion.checkpoint_export.write_export": {"--overwrite": ("overwrite", True)},
    }),
    "imatrix": ("x -d d -o out", {
        "pyvllama.imatrix.collect_imatrix": {
            **GPU,
            "-d e": ("datasets", (Path("d"), Path("e"))),
            "--mmproj m.gguf": ("mmproj", "m.gguf"),
            "--name n": ("name", "n"),
            "-c 77": ("n_ctx", 77),
            "--chunk 99": ("chunk_tokens", 99),
            "--max-tokens 9": ("max_tokens", 9),
            "--process-output": ("process_output", True),
            "--overwrite": ("overwrite", True),
        },
    }),
    "eval": ("x -r r -d d", {
        "pyvllama.cli.evaluate.evaluate_pair": {
            **GPU,
            "-d e": ("datasets", (Path("d"), Path("e"))),
            "-r s": ("reference", "s"),
            "--mmproj m.gguf": ("mmproj", "m.gguf"),
            "--reference-mmproj n.gguf": ("reference_mmproj", "n.gguf"),
            "-c 77": ("n_ctx", 77),
            "--chunk 99": ("chunk_tokens", 99),
            "--max-tokens 9": ("max_tokens", 9),
            "--work-dir w": ("work_dir", Path("w")),
        },
    }),
    "bench": ("x", {
        "pyvllama.cli.bench.measure": {
            **GPU,
            **LAYOUT,
            **RESOLVING,
            "-p 1,2": ("n_prompt", (1, 2)),
            "-n 1,2": ("n_gen", (1, 2)),
            "--tiles 0": ("n_tiles", ()),
            "-r 9": ("repetitions", 9),
        },
    }),
    "show": ("x --fit", {
        "pyvllama.cli.show.resolve": {"--mmproj m.gguf": ("mmproj", "m.gguf")}, "pyvllama.cli.show.examine_fit": FIT,
    }),
    "doctor": ("x", {
        "pyvllama.cli.doctor.resolve": {"--mmproj m.gguf": ("mmproj", "m.gguf")},
        "pyvllama.cli.doctor.examine_fit": FIT,
    }),
}  # fmt: skip
ELSEWHERE = {  # what a command does itself; other commands have all their tests elsewhere
    "run": {"--image", "--system", "--json", "--timings", "--thumbnails", "--history"},
    "caption": {"--prompt", "--system"},  # here, below
    "bench": {"--output"},
    **{command: {"--json"} for command in ("show", "doctor", "eval")},
}
CASES = [
    (command, target, options, name, value)
    for command, (_, targets) in COMMANDS.items()
    for target, expected in targets.items()
    for options, (name, value) in expected.items()
]


class Stop(Exception):
    """It was called: no more is needed."""


@pytest.fixture
def given(monkeypatch, tmp_path, picture):
    """given(command line, target) -> the arguments that the target is called with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").write_text("from-file\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture.read_bytes())
    monkeypatch.setattr("pyvllama.conversion.source.is_adapter_source", lambda *_, **__: False)
    monkeypatch.setattr("pyvllama.conversion.importance.read_importance", lambda _: None)

    def run(line, target):
        calls = []
        llm = MagicMock()
        llm.__enter__.return_value = llm

        def stub(path, original):
            def call(*args, **kwargs):
                if path == target:
                    bound = inspect.signature(original).bind(*args, **kwargs).arguments
                    calls.append({**bound, **bound.get("options", {})})
                    raise Stop
                return POCKET if path.endswith(".resolve") else llm if path == "pyvllama.load" else MagicMock()

            return call

        with monkeypatch.context() as patch:
            for path in COMMANDS[line.split()[0]][1]:
                where, _, name = path.rpartition(".")
                if where == "LLM":
                    setattr(llm, name, stub(path, functools.partial(getattr(pyvllama.LLM, name), llm)))
                else:
                    module = importlib.import_module(where)
                    patch.setattr(module, name, stub(path, getattr(module, name)))
            result = CliRunner().invoke(main, line.split())
        assert len(calls) == 1, (result.output, result.exception)
        settings = calls[0].get("settings")  # a server's
        return calls[0] if settings is None else {f: getattr(settings, f) for f in settings.__dataclass_fields__}

    return run


@pytest.mark.parametrize(
    ("command", "target", "options", "name", "value"), CASES, ids=[f"{c[0]} {c[2]}" for c in CASES]
)
def test_it_arrives(given, command, target, options, name, value):
    base = f"{command} {COMMANDS[command][0]}"
    assert given(f"{base} {options}", target)[name] == value
    assert given(base, target).get(name) != value, "a value that is the default tests nothing"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_tested(command):
    base, targets = COMMANDS[command]
    words = {word for options in (base, *(o for t in targets.values() for o in t)) for word in options.split()}
    missing = [
        max(option.opts, key=len)
        for option in main.commands[command].params
        if isinstance(option, click.Option) and not words & {*option.opts, *option.secondary_opts}
    ]
    assert set(missing) == ELSEWHERE.get(command, set())


def test_what_caption_asks(given):
    (conversation,) = given("caption photos -o c.jsonl -p Why? --system Short.", "LLM.chat_many")["conversations"]
    system, user = conversation
    assert system == {"role": "system", "content": "Short."}
    assert user["content"] == [{"type": "image", "image": Path("photos/a.png")}, {"type": "text", "text": "Why?"}]
