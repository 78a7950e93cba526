"""What a run will take, before it begins: memory, time and disk, estimated by formula and checked by a few steps."""

from .forecast import Plan, forecast

__all__ = ["Plan", "forecast"]
