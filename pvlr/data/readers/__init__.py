"""Readers of data sets, one file for each layout of pictures and labels."""
