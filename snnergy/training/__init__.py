"""The trainer, its configuration, evaluation and checkpoints."""
