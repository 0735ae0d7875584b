"""Engines that run shard tasks."""
