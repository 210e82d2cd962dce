"""Monitoring of a run: console lines, metrics files, TensorBoard, figures and records."""
