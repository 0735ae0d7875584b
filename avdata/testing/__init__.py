"""Generated media and mock datasets for tests and recipe authors."""
