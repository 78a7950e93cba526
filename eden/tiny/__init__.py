"""eden-tiny: a world of coloured shapes, and the small model trained on it from nothing."""
