"""Asking a model: one question, a conversation, or many at once."""
