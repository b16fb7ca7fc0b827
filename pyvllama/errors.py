"""Everything that pyvllama raises on purpose.

::

    VllamaError
    ├── ConfigError          config.json or an option asks for something unsupported
    ├── CheckpointError      a checkpoint directory is incomplete or inconsistent
    ├── FormatError          a GGUF file is damaged, of the wrong kind, or the two files of a pair do not fit
    ├── ModelNotFound        a model, its mmproj or a source does not exist
    ├── ImageError           an image cannot be read or used
    │   ├── ImageTooLarge    over the byte or pixel limit
    │   └── ImageFetchRefused  a URL that is not fetched, or could not be
    ├── PromptError          messages that make no prompt
    │   └── ContextOverflow  a prompt longer than the context
    ├── BackendError         llama.cpp or the extension failed while computing
    ├── QueueFull            as many requests wait as may: try again later
    └── Cancelled            a callback asked to stop
        └── DeadlineExceeded the time that a request may take has passed

A message says what is wrong, where (file, key, tensor, pixel size) and what to do about it. The C++ extension raises
these same classes.
"""

__all__ = [
    "BackendError",
    "Cancelled",
    "CheckpointError",
    "ConfigError",
    "ContextOverflow",
    "DeadlineExceeded",
    "FormatError",
    "ImageError",
    "ImageFetchRefused",
    "ImageTooLarge",
    "ModelNotFound",
    "PromptError",
    "QueueFull",
    "VllamaError",
]


class VllamaError(Exception):
    """Base of all errors that pyvllama raises on purpose."""


class ConfigError(VllamaError):
    """A configuration value or an option that is missing, contradictory or not supported."""


class CheckpointError(VllamaError):
    """A checkpoint directory with missing, unexpected or ill-shaped parts."""


class FormatError(VllamaError):
    """A GGUF file that is damaged, of another kind, or that does not fit its partner."""


class ModelNotFound(VllamaError):
    """A model file, its mmproj, or a conversion source that does not exist."""


class ImageError(VllamaError):
    """An image that cannot be decoded or used."""


class ImageTooLarge(ImageError):
    """An image over the byte or pixel limit."""


class ImageFetchRefused(ImageError):
    """An image URL that is refused by policy, or that could not be fetched."""


class PromptError(VllamaError):
    """Messages from which no prompt can be made."""


class ContextOverflow(PromptError):
    """A prompt that does not fit into the context."""


class BackendError(VllamaError):
    """A computation that failed inside llama.cpp or the extension."""

    @classmethod
    def of(cls, error: Exception) -> VllamaError:
        """The error itself if it is one of ours, else one that tells of it: for who waits on another thread."""
        return error if isinstance(error, VllamaError) else cls(f"the computation failed: {error!r}")


class QueueFull(VllamaError):
    """A request for which there is no room among those that wait."""


class Cancelled(VllamaError):
    """A computation that was stopped by its caller."""


class DeadlineExceeded(Cancelled):
    """A request that took longer than it may."""
