"""Measurements. Each script prints what it measured and where; docs/benchmarks.md quotes them."""

import logging

# bitsandbytes reports an optional CPU kernel it did not find; nothing a reader of figures could act on.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
