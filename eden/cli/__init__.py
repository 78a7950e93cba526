"""The command line: parse, call, print. The work is done by the modules below."""

from .main import main

__all__ = ["main"]
