"""Group normalisation of channels_last pictures, with what comes before it and the SiLU after it."""
