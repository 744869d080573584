"""Codebook matching: the nearest code of each feature, and its gradient."""
