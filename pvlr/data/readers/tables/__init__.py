"""Parts of the reader of tables: the format, the rows of each kind of file, marks, and names of pictures."""
