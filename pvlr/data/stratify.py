"""Stratified split of pictures with many labels: each label in both parts, in proportion."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

__all__ = ["stratified_split"]


def stratified_split(present: Bool[Tensor, "n c"], share: float, order: Sequence[int]) -> Bool[Tensor, " n"]:
    """Choose pictures to set aside so that each label has its share of them.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD
    2011): the rarest label first, each of its pictures goes where most of the label is still missing. Labels of two
    pictures or more are asked to have at least one on either side; where that is not so at the end, pictures are moved
    as long as the number of labels that are missing on a side falls. (It cannot always be 0: three labels of two
    pictures each, on three pictures.)

    Args:
        present: The labels each picture has, ``n c``.
        share: Share of the pictures to set aside, in (0, 1); at least one is, and at least one stays.
        order: The order in which pictures are taken where nothing else decides, a permutation of ``n``.

    Returns:
        True for the pictures that are set aside, ``n``.

    Example:
        >>> present = torch.tensor([[True, False], [True, False], [False, True], [False, True]])
        >>> stratified_split(present, 0.5, range(4)).tolist()
        [False, True, False, True]
    """
    has = present.numpy()
    n = len(has)
    wanted = min(max(round(n * share), 1), n - 1)
    aside = np.zeros(n, dtype=bool)
    todo = np.array(order, dtype=np.int64)
    count = has.sum(axis=0)
    # Labels and pictures that are still missing in each part: first those that stay, then those set aside.
    missing = np.stack([count * (1 - share), count * share])
    missing = np.where(count >= 2, np.clip(missing, 1, np.maximum(count - 1, 1)), missing)
    room = np.array([n - wanted, wanted], dtype=np.float64)
    remaining = count.copy()
    while len(todo):
        rarest = int(np.where(remaining > 0, remaining, n + 1).argmin()) if remaining.any() else None
        here = np.ones(len(todo), dtype=bool) if rarest is None else has[todo, rarest]
        chosen = todo[here]
        for picture in chosen:
            gaps = room if rarest is None else missing[:, rarest]
            part = int(gaps[1] > gaps[0] or (gaps[1] == gaps[0] and room[1] > room[0]))
            if room[part] < 1:
                part = 1 - part
            aside[picture] = bool(part)
            missing[part, has[picture]] -= 1
            room[part] -= 1
        remaining -= has[chosen].sum(axis=0)
        todo = todo[~here]
    return torch.from_numpy(_repaired(has, aside, order))


def _repaired(has: np.ndarray, aside: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Move pictures while that lets more labels of two pictures or more be on both sides."""
    several = has.sum(axis=0) >= 2
    counts = np.stack([has[~aside].sum(axis=0), has[aside].sum(axis=0)])

    def lacking(counts: np.ndarray) -> int:
        return int((counts[:, several] == 0).sum())

    moved = True
    while moved and lacking(counts):
        moved = False
        for picture in order:
            part = int(aside[picture])
            if not has[picture, several & (counts[1 - part] == 0)].any():
                continue
            after = counts.copy()
            after[part] -= has[picture]
            after[1 - part] += has[picture]
            stays = (aside == bool(part)).sum() > 1
            if stays and lacking(after) < lacking(counts):
                aside[picture], counts, moved = not aside[picture], after, True
    return aside
