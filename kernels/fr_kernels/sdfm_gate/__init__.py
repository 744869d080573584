"""The gate that fuses two streams of face features (HDRFace)."""
