"""Nearest 2x upsampling and a 3x3 convolution, folded into one."""
