"""The README does what it says: its code runs, its commands exist, its format section names every key and tensor."""

import re
from pathlib import Path

import pytest

from pyvllama.cli.main import main
from pyvllama.conversion.policy import MMPROJ_TYPES, TEXT_TYPES
from pyvllama.gguf_file import GGUFFile
from pyvllama.locate import pocket_pair

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FORMAT = README[README.index("## The files' format") : README.index("## What it does not do yet")]


def test_python_example(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    (answer,) = re.findall(r"# (The star .*)", code)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == answer
    assert float(out[1]) > 0


def test_commands_are_those_of_the_program():
    block = README[README.index("## On the command line") :].split("```")[1]
    named = re.findall(r"^pyvllama (\w+)", block, flags=re.MULTILINE)
    assert sorted(named) == sorted(main.commands)


@pytest.mark.parametrize(("option", "types"), [("--text-type", TEXT_TYPES), ("--mmproj-type", MMPROJ_TYPES)])
def test_types_are_those_of_convert(option, types):
    listed = re.search(rf"`{option}`\)? takes `([^`]*)`", README)
    assert listed, option
    assert listed[1].split() == list(types)


def test_every_key_is_named():
    keys = [key for key in GGUFFile(pocket_pair().mmproj).metadata if key.startswith("clip.")]
    assert len(keys) > 20
    words = set(re.findall(r"[\w.]+", FORMAT))
    names = (
        {word.strip(".") for word in words}
        | {f"clip.vision.{w}" for w in words}
        | {f"clip.mllama.text.{w}" for w in words}
    )
    names |= {f"clip.mllama{w}" for w in words if w.startswith(".")}
    assert not [key for key in keys if key not in names]


def test_every_tensor_is_named():
    for name in GGUFFile(pocket_pair().mmproj).tensors:
        last = (
            re.sub(r"^(v|mm|xattn)\.(global\.)?(blk\.\d+\.)?", "", name).removesuffix(".weight").removesuffix(".bias")
        )
        for part in (
            last.removesuffix(".gate")
            .replace("pre_tile", "{pre,post}_tile")
            .replace("post_tile", "{pre,post}_tile")
            .split(".")
        ):
            assert re.sub(r"\{pre,post\}_", "", part) in FORMAT, name
