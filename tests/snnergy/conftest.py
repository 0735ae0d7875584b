"""Fixtures of all tests of snnergy."""

from __future__ import annotations

from support.tiny_run import charts, no_charts, quick, tiny_run, tiny_set

__all__ = ["charts", "no_charts", "quick", "tiny_run", "tiny_set"]
