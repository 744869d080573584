"""fr-deploy: one-step diffusion face restoration, deployed."""

__version__ = "0.1.0"
