"""Who may import whom, read from the source; and what `import pyvllama` costs and checks."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import pyvllama
from pyvllama import _runtime
from pyvllama.errors import BackendError

ROOT = Path(pyvllama.__file__).parent

# From the bottom up: a module imports only from lines above its own. A trailing dot stands for a whole package, within
# which anything goes; `image.` is split because `fetch` and `limits` are below `source`.
LAYERS = [
    ["errors"],
    ["file_names", "hub_client"],
    ["types", "fields", "image.limits"],
    ["config", "locate"],
    ["_native"],
    ["_runtime"],
    ["gguf_file", "placement"],
    ["image.fetch", "image.rgb", "image.tiling", "image.media_path", "image.public_address"],
    ["image.source"],
    ["image"],
    ["tokenizer", "messages", "template", "image_groups", "pair_checks", "stream", "fingerprint", "turns"],
    ["sealed_file", "kv_state"],
    ["prompt", "pair_template"],
    ["conversion.", "model", "grammar", "tool_calls"],
    ["image_store"],
    ["context", "vision_cache"],
    ["session", "sampler"],
    ["chat_options", "prompt_cells", "batching", "session_file"],
    ["draft", "completion", "chats_file", "divergence"],
    ["generation", "prompt_lookup", "draft_model"],
    ["answer_text", "engine"],
    ["running"],
    ["many"],
    ["transcripts"],
    ["transcript_reader"],
    ["model_cache", "model_card"],
    ["hub_models", "hub_upload"],
    ["hub_cache"],
    ["inventory"],
    ["resolve"],
    ["llm"],
    ["loading"],
    ["memory_need"],
    ["imatrix", "evaluation", "async_llm", "doctor", "benchmark"],
    ["server."],
    ["integrations."],
    [""],
    ["cli."],
]
# Third-party packages and the only modules that import them.
THIRD_PARTY = {
    "llama_cpp": ["_runtime", "integrations.llama_cpp_server"],
    "gguf": ["conversion.writer", "conversion.provenance"],
    "yaml": ["conversion.front_matter", "model_card"],
    "filelock": ["model_cache"],
    "jinja2": ["template"],
    "certifi": ["image.fetch"],
    "huggingface_hub": ["hub_client", "hub_upload"],
    "tqdm": ["hub_client"],
    "click": ["cli."],
    "rich": ["cli.ui"],
    "prompt_toolkit": ["cli.chat."],
    "PIL": ["image.", "vision_cache", "integrations.image_ids", "cli.chat."],
    "starlette": ["server.", "integrations.ray_serve"],
    "ray": ["integrations.ray_serve"],
    "llm": ["integrations.llm_plugin"],
    "pydantic_core": ["server."],
    "pydantic": ["integrations.llm_plugin", "server."],
    "fastapi": ["server.", "integrations.llama_cpp_server", "integrations.ray_serve"],
    "uvicorn": ["server.http_server"],
    "prometheus_client": ["server.metrics"],
    "numpy": [
        *("_runtime", "gguf_file", "image.", "conversion.", "model", "context", "sampler", "session", "llm"),
        *("divergence", "evaluation", "transcript_reader", "async_llm", "benchmark"),
        *("sealed_file", "kv_state", "session_file", "draft_model"),
        "integrations.llama_cpp_python",
    ],
}


def sources() -> dict[str, ast.Module]:
    """Module name below pyvllama ("" is the package itself) -> its source."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


SOURCES = sources()


def imported(tree: ast.Module) -> set[str]:
    """Absolute names of all modules imported anywhere in a source, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:  # `from pyvllama import errors` imports a module, `from x import y` mostly not
                full = f"{node.module}.{alias.name}"
                inner = full.removeprefix("pyvllama.")
                found.add(full if inner in SOURCES or inner == "_native" else node.module)
    return found


def matches(module: str, pattern: str) -> bool:
    return f"{module}.".startswith(pattern) if pattern.endswith(".") else module == pattern


def layer(module: str) -> int:
    (found,) = (i for i, patterns in enumerate(LAYERS) if any(matches(module, p) for p in patterns))
    return found


def test_every_module_has_its_layer():
    for module in SOURCES:
        assert layer(module) >= 0, module
    for pattern in (p for patterns in LAYERS for p in patterns if p != "_native"):
        assert any(matches(module, pattern) for module in SOURCES), f"{pattern} is gone"


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downwards(module):
    for name in imported(SOURCES[module]):
        if name != "pyvllama" and not name.startswith("pyvllama."):
            continue
        other = name.removeprefix("pyvllama").lstrip(".")
        same_package = any(p.endswith(".") and matches(module, p) and matches(other, p) for p in LAYERS[layer(module)])
        lazy = (module, other) == ("", "conversion")
        assert layer(other) < layer(module) or same_package or lazy, f"{module} imports {other}"


def test_within_a_package_there_are_no_cycles():
    from graphlib import TopologicalSorter

    graph = {
        module: {
            name.removeprefix("pyvllama").lstrip(".")
            for name in imported(tree)
            if name.startswith("pyvllama.") and (module, name) != ("", "pyvllama.conversion")
        }
        for module, tree in SOURCES.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle


def test_conversion_never_sees_a_model():
    for module in (m for m in SOURCES if matches(m, "conversion.")):
        others = {n.removeprefix("pyvllama.") for n in imported(SOURCES[module])}
        assert not others & {"model", "context", "session", "llm", "vision_cache"}, module


def test_the_extension_has_one_importer():
    assert [m for m, tree in SOURCES.items() if "pyvllama._native" in imported(tree)] == ["_runtime"]


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_third_party_packages_have_their_places(package):
    users = [m for m, tree in SOURCES.items() if any(matches(name, f"{package}.") for name in imported(tree))]
    assert users
    for module in users:
        assert any(matches(module, place) for place in THIRD_PARTY[package]), f"{module} imports {package}"


def test_nothing_else_is_imported():
    known = {"pyvllama", *THIRD_PARTY, *sys.stdlib_module_names}
    for module, tree in SOURCES.items():
        unknown = {name.split(".")[0] for name in imported(tree)} - known
        assert not unknown, f"{module} imports {unknown}"


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_loads_only_what_chatting_needs():
    run = run_python("import json, sys, pyvllama; print(json.dumps(sorted(sys.modules)))")
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    packages = {name.split(".")[0] for name in loaded}
    unwanted = {
        "torch",
        "transformers",
        "safetensors",
        "gguf",
        "rich",
        "prompt_toolkit",
        "click",
        "certifi",
        "llm",
        "fastapi",
    }
    assert not packages & unwanted
    ours = ("pyvllama.conversion", "pyvllama.cli", "pyvllama.integrations")
    assert not [name for name in loaded if name.startswith(ours)]


def test_import_says_nothing_and_leaves_logging_alone():
    run = run_python("import logging, pyvllama; assert not logging.getLogger().handlers")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_converting_needs_no_torch():
    run = run_python(
        "import sys, pyvllama; pyvllama.convert; assert 'gguf' in sys.modules; assert 'torch' not in sys.modules"
    )
    assert run.returncode == 0, run.stderr


# --- the version check ---


def test_another_version_of_llama_cpp_python_is_refused_with_the_command_that_mends_it():
    with pytest.raises(BackendError) as caught:
        _runtime._check_versions("0.3.99", SimpleNamespace(llama_cpp_python_version="0.3.36"))
    message = str(caught.value)
    assert "llama-cpp-python 0.3.99 is installed" in message
    assert "built against 0.3.36" in message
    assert message.endswith("pip install llama-cpp-python==0.3.36")


def test_the_check_happens_at_import():
    run = run_python(
        "from importlib import metadata; real = metadata.version\n"
        "metadata.version = lambda name: '0.0.1' if name == 'llama-cpp-python' else real(name)\n"
        "import pyvllama"
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("pyvllama.errors.BackendError: llama-cpp-python 0.0.1 is installed")
    assert last.endswith(f"pip install llama-cpp-python=={_runtime.native.llama_cpp_python_version}")


def test_a_missing_extension_says_how_to_build_it():
    run = run_python("import sys; sys.modules['pyvllama._native'] = None; import pyvllama")
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("pyvllama.errors.BackendError")
    assert "pip install" in last


def test_the_built_version_is_the_pinned_one():
    from importlib import metadata

    required = [r.split(";")[0].strip() for r in metadata.requires("pyvllama") if r.startswith("llama-cpp-python")]
    built = _runtime.native.llama_cpp_python_version
    assert set(required) == {f"llama-cpp-python=={built}", f"llama-cpp-python[server]=={built}"}
