"""Preparation of a dataset: plan the shards, run the shard jobs, finalize."""
