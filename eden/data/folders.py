"""Folders of images and recordings: each is listed once, however many records name files in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

LOOKUPS_BEFORE_LISTING = 64
"""A few names are looked up one by one: a folder of millions of files takes seconds to list."""
_COCO = re.compile(r"(?:(?:.*/)?(?:coco|(?:train|val|test)20\d\d)/)?(?:COCO_(?:train|val)2014_)?(\d{12}\.jpg)")
"""A name of COCO's, bare or in a folder of COCO's: in others, frames of a video may be numbered like that."""


class Folder:
    """A folder that records name files in, as it was when it was first asked.

    Args:
        root: names are relative to it.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._names: dict[str, frozenset[str]] = {}
        self._asked: Counter[str] = Counter()

    def __reduce__(self) -> tuple[type[Folder], tuple[Path]]:
        return Folder, (self.root,)  # another process lists for itself what it needs

    def image(self, name: str) -> Path:
        """The path of an image (`find`), or the name as given where nothing is found: the check reports it."""
        return self.find(name) or self.root / name

    def find(self, name: str) -> Path | None:
        """The path of an image, also where a data set and COCO's folders disagree on its name; None if there is none.

        LLaVA-Instruct says `000000033471.jpg` or `coco/train2017/000000033471.jpg`; the folders of COCO 2014 hold
        `COCO_train2014_000000033471.jpg`, those of 2017 the bare number. Any other name is taken as it is written:
        `a/0.png` and `b/0.png` are two images.
        """
        head, slash, base = name.rpartition("/")
        if self._has(head or slash, base):
            return self.root / name
        if (coco := _COCO.fullmatch(name)) is None:
            return None
        bare = coco[1]
        others = (bare, f"COCO_train2014_{bare}", f"COCO_val2014_{bare}")
        return next((self.root / other for other in others if self._has("", other)), None)

    def _has(self, head: str, base: str) -> bool:
        listed = self._names.get(head)
        if listed is None:
            folder = os.path.join(self.root, head)  # noqa: PTH118 - a hundred thousand times
            self._asked[head] += 1
            if self._asked[head] <= LOOKUPS_BEFORE_LISTING:
                return bool(base) and os.path.exists(os.path.join(folder, base))  # noqa: PTH110, PTH118
            try:
                listed = frozenset(os.listdir(folder))  # noqa: PTH208
            except (OSError, ValueError):
                listed = frozenset()
            self._names[head] = listed
        return base in listed
