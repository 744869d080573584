"""Self-attention and BoostHub's look at the low-quality stream, side by side."""
