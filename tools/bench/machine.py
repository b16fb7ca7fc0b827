"""What every benchmark says of where it ran, and how it watches a process."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe(*packages: str) -> dict[str, Any]:
    """Machine and versions, as a JSON object."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    memory = [line.split()[1] for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "memory_gb": round(int(memory[0]) / 1e6, 1) if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pyvllama", "llama-cpp-python", *packages)},
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@dataclass
class Cost:
    """What a process took."""

    seconds: float
    cpu_seconds: float
    max_rss: int
    """Bytes, mapped file pages included."""
    max_anonymous: int
    """Bytes of memory of its own: the resident set without mapped file pages."""
    bytes_read: int
    """Asked for by read calls; pages of mapped files are not among them."""
    bytes_written: int

    def as_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.max_rss, other.max_rss),
            max(self.max_anonymous, other.max_anonymous),
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )


def watch(command: list[str]) -> Cost:
    """Run a command to its end and measure it (Linux: /proc, sampled 20 times a second)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen = {"VmHWM": 0, "RssAnon": 0, "rchar": 0, "wchar": 0, "cpu": 0.0}
    done = threading.Event()

    def look(folder: Path) -> None:
        for line in (*_lines(folder / "status"), *_lines(folder / "io")):
            key, _, value = line.partition(":")
            if key in seen:
                scale = 1024 if value.strip().endswith("kB") else 1
                seen[key] = max(seen[key], int(value.split()[0]) * scale)
        fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        seen["cpu"] = (int(fields[11]) + int(fields[12])) / 100

    def sample() -> None:
        while not done.wait(0.05):
            with contextlib.suppress(OSError, IndexError, ValueError):  # it has just ended
                look(Path("/proc") / str(process.pid))

    thread = threading.Thread(target=sample)
    thread.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with code {code}")
    return Cost(seconds, seen["cpu"], seen["VmHWM"], seen["RssAnon"], seen["rchar"], seen["wchar"])


def drop_page_cache() -> bool:
    """Forget cached files, so that a run reads from the disk; False where one may not (it needs root)."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True
