"""`convert` and `plan_conversion` list the same options twice, for who reads them: they stay the same, and arrive."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvllama.conversion import pipeline
from pyvllama.conversion.pipeline import convert, plan_conversion

CONVERT, PLAN = (inspect.signature(function).parameters for function in (convert, plan_conversion))
WRITING = {"n_threads", "progress", "overwrite"}


def test_they_are_the_same():
    shared = CONVERT.keys() - WRITING
    assert shared == PLAN.keys() - {"mmproj_only"}  # which leaves no pair to return
    assert {name: CONVERT[name] for name in shared} == {name: PLAN[name] for name in shared}


@pytest.mark.parametrize("option", [name for name in CONVERT if name not in ("src", "out_dir")])
def test_each_arrives(monkeypatch, option):
    seen = {}
    file = SimpleNamespace(path=Path("x"))
    planned = SimpleNamespace(notes=(), files=[], text=[file], mmproj=file)
    monkeypatch.setattr(pipeline, "plan_conversion", lambda *_, **options: seen.update(options) or planned)
    monkeypatch.setattr(pipeline, "write_files", lambda _, **options: seen.update(options))
    value = object()
    convert("x", "y", **{option: value})
    assert seen[option] is value
    assert seen == {name: CONVERT[name].default for name in seen} | {option: value}
