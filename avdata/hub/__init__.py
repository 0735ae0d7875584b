"""Publish to the Hugging Face Hub and pull from it."""
