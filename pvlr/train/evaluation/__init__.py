"""Evaluation: predictions, calibration, report files, and studies of many runs."""
