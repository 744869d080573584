"""Backends that run an exported restoration graph: uint8 faces in, uint8 faces out."""
