"""The bar of a command that goes through batches."""

from collections.abc import Iterable, Iterator

from pvlr.data.batch import Batch

__all__ = ["progress"]


def progress(batches: Iterable[Batch], count: int, name: str | None = None) -> Iterator[Batch]:
    """Yield batches, with a bar on a terminal and nowhere else.

    Args:
        batches: The batches.
        count: Their number.
        name: Text before the bar.

    Example:
        >>> list(progress([], 0))
        []
    """
    from tqdm import tqdm

    yield from tqdm(batches, total=count, desc=name, unit="batch", leave=False, disable=None)
