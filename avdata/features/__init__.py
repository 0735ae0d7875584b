"""Features of a clip: alignment, spectrograms, quality checks."""
