"""The README of an artifact, made from the facts of its run."""

from __future__ import annotations

from collections.abc import Mapping


def model_card(name: str, facts: Mapping[str, str | int | float], recipe: str) -> str:
    """Markdown with the hub's front matter, what the run measured, how to load the artifact, and its recipe."""
    rows = "\n".join(
        f"| {key} | {value:,} |" if isinstance(value, int) else f"| {key} | {value} |" for key, value in facts.items()
    )
    return f"""---
library_name: eden
pipeline_tag: image-text-to-text
---

# {name}

Trained with [Eden](https://pypi.org/project/eden-multimodal/): CLIP image features through a projection block into a
language model.

| | |
|---|---|
{rows}

The loss curve and sample answers are in `report.html`, the log in `training.jsonl`.

## Use

```python
import eden

assistant = eden.load("{name}")
print(assistant.ask("What is in this picture?", images=["picture.png"]))
```

## Recipe

```yaml
{recipe.strip()}
```
"""
