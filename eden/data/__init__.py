"""Data sets: read, checked, encoded, batched."""
