"""Writes that really fail, as on a full disk: the kernel refuses them past a size (EFBIG, in the middle of a write)."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """No file of this process gets larger than that, until the end of the block."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
