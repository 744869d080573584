"""The 3x3 convolution with stride 1."""
