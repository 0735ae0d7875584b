"""Bundled recipes, one module per dataset; see `avdata.recipe`."""

from __future__ import annotations
