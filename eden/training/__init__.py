"""Training: a recipe becomes an artifact."""
