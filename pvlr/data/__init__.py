"""Bytes and annotations to batches: readers, transforms and the generated scenes."""
