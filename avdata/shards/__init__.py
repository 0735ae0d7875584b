"""The on-disk format: write, read, verify, describe and export shards."""
