"""Data loading: readers, transforms, batches and the generated scenes."""

from pvlr.packages import require_packages

require_packages("pvlr.data", "data", ("PIL", "torchvision"))
