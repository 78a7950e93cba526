"""Measurements. Each script prints what it measured and where; docs/benchmarks.md quotes them."""

import eden as eden  # before what a bench imports: it quiets bitsandbytes
