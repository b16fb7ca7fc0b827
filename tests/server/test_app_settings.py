"""What a server may be told."""

import ast
import dataclasses
from pathlib import Path

import pytest

from pyvllama import server
from pyvllama.cli.serve import warning as serve
from pyvllama.errors import ConfigError
from pyvllama.server.pool_setup import _OF_LOAD
from pyvllama.server.settings import Settings, is_loopback
from pyvllama.types import Pair


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", 0), ("n_ctx", 1.5), ("n_ctx", True), ("n_ctx", "4096"), ("n_ctx", None), ("n_threads", 0),
        ("n_threads", 513), ("n_gpu_layers", -2), ("parallel", 0), ("parallel", 257), ("max_queue", -1),
        ("deadline_s", 0), ("deadline_s", float("nan")), ("deadline_s", float("inf")), ("keep_alive_s", -1),
        ("max_models", 0), ("port", -1), ("port", 65536), ("grace_s", None), ("max_body_bytes", 0),
        ("max_image_bytes", 0), ("image_timeout_s", 0), ("kv_type", "q4_0"), ("cross_kv_type", "q4_0"),
        ("log_format", "xml"), ("log_prompts", 1), ("repack", 1), ("mmproj_offload", None),
        ("allow_private_urls", None), ("api_keys", "a-key"),
        ("api_keys", ["a-key"]), ("aliases", ("",)), ("aliases", ("a b",)), ("aliases", (1,)), ("host", ""),
        ("repack", 0), ("mmproj_offload", None), ("flash_attn", "on"),
        ("host", "a b"), ("host", "http://a"), ("host", "a:80"), ("allowed_hosts", ("a:80",)),
    ],
)  # fmt: skip
def test_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name.rstrip("s").removesuffix("e") if name == "aliases" else name):
        Settings(**{name: value})


def test_media_path_is_a_directory(tmp_path):
    assert Settings(media_path=tmp_path).media_path == tmp_path
    with pytest.raises(ConfigError, match="no directory"):
        Settings(media_path=tmp_path / "none")


def test_they_stay_as_they_are():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1


def test_the_defaults_are_careful():
    settings = Settings()
    assert settings.is_loopback and not settings.cors_origins and settings.media_path is None
    assert not (settings.allow_private_urls or settings.log_prompts or settings.manage_models)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.1", False), ("127.example", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_with_pair():
    settings = Settings(model="user/repo", text_type="q8_0", aliases=("a",))
    found = settings.with_pair(Pair(Path("t.gguf"), Path("m.gguf")), ("user/repo",))
    assert (found.model, found.mmproj, found.text_type) == ("t.gguf", "m.gguf", None)
    assert found.aliases == ("a", "user/repo")


def test_every_setting_is_read_somewhere():
    """What `pyvllama.load` takes goes to it by name, see tests/api/test_load_arrives.py; a field that nobody reads
    does nothing."""
    sources = [path.read_text(encoding="utf-8") for path in Path(server.__file__).parent.rglob("*.py")]
    sources.append(Path(serve.__code__.co_filename).read_text(encoding="utf-8"))
    read = {node.attr for source in sources for node in ast.walk(ast.parse(source)) if is_read_of_settings(node)}
    unread = {field.name for field in dataclasses.fields(Settings)} - read - set(_OF_LOAD)
    assert unread == set()


def is_read_of_settings(node):
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
        return False
    owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
    return owner in ("settings", "_settings")
