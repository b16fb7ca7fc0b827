"""Errors in Ollama's shape: `{"error": "words"}`."""
