"""Files opened in a process of their own, and files damaged at random."""

import json
import subprocess
import sys
from pathlib import Path

import gguf_bytes
import numpy as np

WORKER = Path(__file__).parent / "open_gguf.py"


def verdicts(kind: str, paths: list[Path]) -> dict[str, dict[str, str | None]]:
    """What opening each file does; a file that ends the process gets {"error": "died"}."""
    found: dict[str, dict[str, str | None]] = {}
    while rest := [path for path in paths if path.stem not in found]:
        run = subprocess.run(
            [sys.executable, str(WORKER), kind, *map(str, rest)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.stdout.startswith("ready"), run.stderr
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        found |= {Path(line["file"]).stem: line for line in lines}
        if len(lines) < len(rest):
            found[rest[len(lines)].stem] = {"error": "died", "message": f"exit {run.returncode}: {run.stderr[-600:]}"}
    return found


def damage(source: Path, out_dir: Path, n: int, seed: int) -> list[Path]:
    """n copies of a GGUF file, each with one to eight bytes of its header changed at random."""
    raw, header = source.read_bytes(), len(gguf_bytes.read(source).header())
    rng = np.random.RandomState(seed)
    paths = []
    for i in range(n):
        damaged = bytearray(raw)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randint(header)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randint(256)])
        paths.append(out_dir / f"damaged_{i}.gguf")
        paths[-1].write_bytes(damaged)
    return paths
