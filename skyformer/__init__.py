"""Efficient attention for long sequences: Gaussian-kernel attention, its Nyström approximation, and their peers."""

__version__ = "0.1.0"
