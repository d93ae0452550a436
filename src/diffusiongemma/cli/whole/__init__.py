"""The whole-size bench: the full architecture with random weights on one GPU, or a toy anywhere."""
