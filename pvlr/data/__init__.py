"""Bytes and annotations to batches: readers, transforms and the generated scenes."""

from pvlr.packages import require_packages

require_packages("pvlr.data", "data", ("PIL", "torchvision"))
