"""Which pictures a server fetches and opens for its clients."""

from pyvllama.image.limits import ImageLimits, IPAddress
from pyvllama.server.settings import Settings

__all__ = ["image_limits"]


def image_limits(settings: Settings) -> ImageLimits:
    """Limits for pictures that clients send or name."""
    return ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        timeout_s=settings.image_timeout_s,
        allow_files=False,
        check_address=None if settings.allow_private_urls else _refuse_inside,
    )


def _refuse_inside(address: IPAddress) -> str | None:
    return None if address.is_global else "it is no public address"
