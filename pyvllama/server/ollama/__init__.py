"""Ollama's API: what apps that were written for `llama3.2-vision` on Ollama speak."""
