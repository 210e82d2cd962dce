"""Generated scenes: the data set that needs no download."""
