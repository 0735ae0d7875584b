"""The `snnergy` command line."""

from snnergy.cli.main import app, main

__all__ = ["app", "main"]
