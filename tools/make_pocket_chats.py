"""Write a file of chats about new pictures for the pocket model: for `pyvllama imatrix` and `pyvllama eval`.

    python tools/make_pocket_chats.py OUT_DIR N_CHATS SEED

Pictures and dialogues are drawn by the generator that the model was trained with (needs the DejaVu fonts). Different
seeds make different sets: one to calibrate with, another one to judge by.
"""

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data" / "pocket-vllama" / "train"))

import gen

WITHOUT, ONE, TWO = 0.15, 0.7, 0.15  # shares of chats by number of pictures


def main(out_dir: str, n_chats: str, seed: str) -> None:
    """Write OUT_DIR/chats.jsonl and its pictures."""
    out, rng = Path(out_dir), random.Random(int(seed))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "chats.jsonl").open("w", encoding="utf-8") as f:
        for i in range(int(n_chats)):
            (n_images,) = rng.choices((0, 1, 2), (WITHOUT, ONE, TWO))
            messages, scenes = gen.make_dialogue(rng, n_images, adjacent=n_images == 2 and rng.random() < 0.5)
            for k, scene in enumerate(scenes):
                scene.img.save(out / f"{i:04}-{k}.png")
            chat = [{"role": role, "content": [_part(i, p) for p in parts]} for role, parts, _ in messages]
            f.write(json.dumps({"messages": chat}) + "\n")


def _part(i: int, part: tuple) -> dict:
    kind, value = part
    if kind == "text":
        return {"type": "text", "text": value}
    return {"type": "image_url", "image_url": {"url": f"{i:04}-{value}.png"}}


if __name__ == "__main__":
    main(*sys.argv[1:])
