"""The HTTP server: OpenAI's and Ollama's APIs and a web page on one engine. `app.create_app` puts it together."""
