"""Metrics over labels of which some may be unknown: ranking, decisions, calibration and bootstrap intervals."""
