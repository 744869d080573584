"""The shifted pixel shuffle behind a folded nearest-2x upsample."""
