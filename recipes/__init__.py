"""The bundled recipes, one module a dataset; see `avdata.recipe`."""

from __future__ import annotations
