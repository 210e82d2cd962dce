"""The command ``pvlr``: one module per command, and what they share; importing it imports none of them."""
