"""Hugging Face checkpoints into pairs of GGUF files."""

from pyvllama.conversion.pipeline import convert

__all__ = ["convert"]
