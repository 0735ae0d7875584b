"""The `avdata` command line."""

from avdata.cli.main import app, main

__all__ = ["app", "main"]
