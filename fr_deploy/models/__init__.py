"""Model definitions: presets, the LAFR restorer and its parts."""
