"""How much of a picture is accepted, and from where."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["IPAddress", "ImageLimits"]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on what `load_image` reads; the defaults suit a person at their own machine.

    Attributes:
        max_bytes: of a file, a download or a decoded data: URI.
        max_pixels: width times height, checked before a picture is decoded. The default is the number from which Pillow
            itself warns; above twice `PIL.Image.MAX_IMAGE_PIXELS` Pillow refuses whatever stands here.
        timeout_s: for a whole download, redirects included, however slowly it drips. (Looking up a host's name takes
            as long as the system allows.)
        max_images: pictures of one prompt.
        max_total_pixels: of all pictures of one prompt together.
        max_redirects: how many redirects are followed.
        allow_files: whether a string may name a file. A server sets False: its clients have no business in its files.
        media_path: below this directory a string may name files all the same, see `read_below`.
        check_address: asked for every IP address before it is contacted, after each redirect too; answers why it may
            not be contacted, None if it may. Here a server refuses private, loopback and link-local addresses; since
            the very address that was checked is then connected to, a name cannot point elsewhere in between.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 89_478_485
    max_images: int | None = None
    max_total_pixels: int | None = None
    timeout_s: float = 30.0
    max_redirects: int = 3
    allow_files: bool = True
    media_path: Path | None = None
    check_address: Callable[[IPAddress], str | None] | None = None
