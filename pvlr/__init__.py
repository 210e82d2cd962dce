"""Prompt-driven visual-linguistic representation learning for multi-label image recognition."""

__version__ = "0.1.0"
