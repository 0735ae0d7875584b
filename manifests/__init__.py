"""Facts about the bundled datasets' sources, as JSON; see `avdata.manifest`."""
