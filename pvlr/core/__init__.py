"""Tensors in, tensors out: the blocks of PVLR and the functions they are made of."""
