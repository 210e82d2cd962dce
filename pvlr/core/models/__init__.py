"""Networks assembled of blocks: PVLR, and baselines on the same towers."""
