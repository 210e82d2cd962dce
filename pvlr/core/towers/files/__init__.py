"""Configurations and weights of towers as files: found, checked and read."""
