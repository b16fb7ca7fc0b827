"""The command line in this process, and files for it."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyvllama.cli.main import main


@pytest.fixture
def cli() -> Callable[..., Result]:
    """cli(*arguments, stdin=None) -> its result, stdout and stderr apart; what is not caught there is raised here."""

    def run(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, list(map(str, arguments)), input=stdin, catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def pair(tiny_pair: Callable[..., Any]) -> Any:
    """A small random model."""
    return tiny_pair("two_tiles")


@pytest.fixture(scope="session")
def picture(pocket_checkpoint: Path) -> Path:
    """A yellow ring and an orange triangle."""
    return pocket_checkpoint / "samples" / "01_square.png"


@pytest.fixture
def no_picture(tmp_path: Path) -> Path:
    (tmp_path / "notes.png").write_text("no picture")
    return tmp_path / "notes.png"


@pytest.fixture
def huge_picture(tmp_path: Path) -> Path:
    """A file of 54 bytes that says it has 1.6 gigapixels."""
    sizes = struct.pack("<iiiHHIIiiII", 40, 40000, 40000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "huge.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + sizes)
    return tmp_path / "huge.bmp"


@pytest.fixture(autouse=True)
def no_caches_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither what is in the caches of who runs the tests matters, nor may it be changed."""
    import huggingface_hub  # reads its environment when it is imported
    from huggingface_hub.utils import _cache_manager

    monkeypatch.setenv("PYVLLAMA_CACHE", str(tmp_path / "pyvllama-cache"))
    monkeypatch.setenv("PYVLLAMA_DATA", str(tmp_path / "pyvllama-data"))
    for module in (huggingface_hub.constants, _cache_manager):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models: more threads only wait for one another."""
    for module in ("loading", "model"):
        monkeypatch.setattr(f"pyvllama.{module}.default_n_threads", lambda: 1)
