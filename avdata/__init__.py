"""Public audio-visual datasets, aligned to the frame, as verified WebDataset shards."""
