"""Paths, atomic writes, hashes and remote storage."""
