"""The bundled recipes, one module a dataset; see `avdata.recipe`."""
