"""Write tests/data/golden/*.npz: what the oracle says, for the tests that run without torch.

    python tools/make_golden.py [NAME...]        # names: those of tests/tiny_configs.py, and pocket; default all

Needs torch and transformers (pip install 'pyvllama[reference]'). Each file's `header` is JSON and says which command,
which versions and which weights made it. Arrays are samples of the results, see tests/goldens.py.
"""

# ruff: noqa: E402 (the tests directory has to be on the path first)
import argparse
import json
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import factories
import goldens
import torch
import transformers
from cases import CONVERSATIONS, all_cases, conversation
from reference import Oracle, preprocess, render
from tiny_configs import ALL_CONFIGS
from transformers.image_utils import load_image

POCKET = ROOT / "tests" / "data" / "pocket-vllama"


def header(name: str, checkpoint: Path, **more: Any) -> dict[str, Any]:
    """The birth certificate of a file."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    return {
        "command": f"python tools/make_golden.py {name}",
        "oracle": "tests/reference.py: transformers, float32, eager attention, Meta's rules",
        "versions": versions | {"python": platform.python_version(), "machine": platform.machine()},
        "checkpoint_sha256": goldens.digest(checkpoint),
        "n_samples": goldens.N_SAMPLES,
    } | more


def make_tiny(name: str) -> None:
    """Logits of every case, and the vision states of every canvas, of a tiny random model."""
    arrays = {}
    with TemporaryDirectory() as tmp:
        checkpoint = factories.write_checkpoint(Path(tmp), name)
        oracle = Oracle(checkpoint)
        for case in all_cases(name):
            logits = oracle.logits(case.token_ids, case.images)
            arrays[f"{case.name}.logits"] = goldens.sample(logits)
            arrays[f"{case.name}.rms"] = np.sqrt(np.mean(np.square(logits)))
            if case.name.startswith("canvas_"):
                states = oracle.vision_states(case.images[0])
                arrays[f"{case.name}.states"] = goldens.sample(states)
                arrays[f"{case.name}.states_rms"] = np.sqrt(np.mean(np.square(states)))
        goldens.save(goldens.GOLDEN_DIR / f"{name}.npz", header(name, checkpoint, seed=0), arrays)


def make_pocket() -> None:
    """First question about each sample picture, and conversations: token ids, a sample of the logits, the last row."""
    oracle, arrays = Oracle(POCKET), {}
    listed = json.loads((POCKET / "samples" / "expected.json").read_text())["samples"]
    pictures = [POCKET / "samples" / sample["image"] for sample in listed]
    prompts = {name: conversation(name, pictures) for name in CONVERSATIONS}
    for sample, picture in zip(listed, pictures, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": sample["qa"][0]["question"]}]
        prompts[sample["image"]] = ([{"role": "user", "content": content}], [picture])
    for key, (messages, used) in prompts.items():
        token_ids = render(POCKET, messages)
        logits = oracle.logits(token_ids, [preprocess(POCKET, load_image(str(picture))) for picture in used])
        arrays[f"{key}.token_ids"] = np.array(token_ids, np.int32)
        arrays[f"{key}.logits"] = goldens.sample(logits)
        arrays[f"{key}.last_row"] = logits[-1].astype(np.float32)
        arrays[f"{key}.rms"] = np.sqrt(np.mean(np.square(logits)))
    goldens.save(goldens.GOLDEN_DIR / "pocket.npz", header("pocket", POCKET), arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*ALL_CONFIGS, "pocket"]))
    names = parser.parse_args().names or [*ALL_CONFIGS, "pocket"]
    for name in names:
        if name == "pocket":
            make_pocket()
        else:
            make_tiny(name)
        path = goldens.GOLDEN_DIR / f"{name}.npz"
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
