"""Text towers, their tokenizers, and sentence encoders."""
