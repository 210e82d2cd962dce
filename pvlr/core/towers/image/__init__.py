"""Image towers: patch vectors and the pooled vector, of any supported network."""
