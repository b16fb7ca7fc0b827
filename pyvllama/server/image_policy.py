"""Which pictures a server fetches and opens for its clients."""

from pyvllama.image.limits import ImageLimits
from pyvllama.image.public_address import why_not_public
from pyvllama.server.settings import Settings

__all__ = ["image_limits"]


def image_limits(settings: Settings) -> ImageLimits:
    """Limits for pictures that clients send or name: see `Settings`, `why_not_public`, `read_below`."""
    return ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_images=settings.max_images,
        max_total_pixels=settings.max_total_pixels,
        timeout_s=settings.image_timeout_s,
        allow_files=False,
        media_path=settings.media_path,
        check_address=None if settings.allow_private_urls else why_not_public,
    )
