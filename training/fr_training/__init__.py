"""Training: degradations, generated faces, the loop, evaluation."""
