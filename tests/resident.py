"""What the kernel says of the memory of this process (Linux)."""

import re
from pathlib import Path

import pytest

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+ *(.*)")

needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only")


def resident_bytes(path: Path) -> int:
    """Of a file's mappings, what is in memory for this process."""
    found, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := _MAPPING.fullmatch(line):
            of_file = match[2] == str(path.resolve())
        elif of_file and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
