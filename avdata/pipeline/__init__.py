"""Prepare a dataset: plan, run shard tasks, finalize."""
