"""--no-repack reaches who loads the text model, and changes the prediction of what that takes."""

import json

import pytest

from pyvllama import model as model_module
from pyvllama.locate import pocket_pair
from pyvllama.memory_need import memory_need, read_sizes


@pytest.fixture
def repacked(monkeypatch):
    """What every text model was loaded with."""
    asked = []
    load_text = model_module.load_text

    def record(file, **options):
        asked.append(options["repack"])
        return load_text(file, **options)

    monkeypatch.setattr(model_module, "load_text", record)
    return asked


@pytest.mark.parametrize(("option", "expected"), [((), True), (("--no-repack",), False), (("-nr",), False)], ids=str)
def test_it_arrives(cli, repacked, option, expected):
    result = cli("run", pocket_pair().text, "Hello", "--max-tokens", 1, "-t", 1, *option)
    assert result.exit_code == 0, result.output
    assert repacked == [expected]


@pytest.mark.parametrize("option", ["--repack", "--no-repack"])
@pytest.mark.parametrize("command", [("show", "--fit"), ("doctor",)], ids=str)
def test_the_prediction(cli, command, option):
    name, *rest = command
    d = json.loads(cli(name, pocket_pair().text, *rest, "--json", option).stdout)
    need = memory_need(read_sizes(pocket_pair(), repack=option == "--repack"))
    assert (d["fit"] if name == "show" else d["model"])["phases"] == {
        phase: sum(parts.values()) for phase, parts in need.phases.items()
    }
