"""Learning: examples in, a checkpoint out."""
