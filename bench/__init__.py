"""Measurements. Each script prints what it measured and where; docs/benchmarks.md quotes them."""
