"""Benchmarks: techniques timed side by side, gated by the quality of what they return."""
