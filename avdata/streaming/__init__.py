"""Stream prepared shards as samples and batches."""
