"""Codebook matching: the nearest code of each feature, its gradients, and the differentiable argmin."""
