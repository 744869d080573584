"""Faces cut out of frames by a similarity, and pasted back in place."""
