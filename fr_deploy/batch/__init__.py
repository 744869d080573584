"""Photos by the million: listed once, restored in bounded memory, each with exactly one outcome on disk."""
