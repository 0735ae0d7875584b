"""Report pages about a prepared dataset."""
