"""Helpers of the tests: toys, references, strategies, and what a test needs of the machine."""
