"""Checkpoints of Hugging Face's and of Meta's form, local or on the Hub, into pairs of GGUF files, and back."""

from pyvllama.conversion.checkpoint_export import export
from pyvllama.conversion.lora_gguf import convert_lora
from pyvllama.conversion.pipeline import convert
from pyvllama.conversion.quantization import quantize

__all__ = ["convert", "convert_lora", "export", "quantize"]
