"""`pyvllama serve`: the OpenAI and Ollama APIs over HTTP, and a page to look at."""
