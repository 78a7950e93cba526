"""Serving a model: OpenAI's API and a web page over one engine."""
