"""Stream prepared datasets as samples and batches."""
