"""Inference: recognition in pictures, saved models, tag files, pages and exported programs."""
