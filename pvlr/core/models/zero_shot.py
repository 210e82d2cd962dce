"""Recognition without training: PVLR with the base scores of its towers alone."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from pvlr.core.base import BasePart, base_scores
from pvlr.core.models.config import PVLRConfig
from pvlr.core.protocols import ImageFeatures, Regions
from pvlr.core.towers import Towers

PARTS: dict[Regions, tuple[BasePart, ...]] = {
    "pooled": ("pooled",),
    "patches": ("best",),
    "both": ("pooled", "best"),
    "all": ("pooled", "best"),
}
"""Vectors of an image that are compared, as scores of the base."""

__all__ = ["zero_shot_config", "zero_shot_cosines", "zero_shot_regions"]


def zero_shot_regions(towers: Towers) -> Regions:
    """Return the vectors of an image to compare with labels: those the towers name, or as in CLIP, the pooled one."""
    return "pooled" if towers.zero_shot is None else towers.zero_shot.regions


def zero_shot_config(towers: Towers, *, templates: Sequence[str] = ("a photo of a {}.",)) -> PVLRConfig:
    """Return the configuration of PVLR for zero-shot recognition by these towers: fixed prompts without training.

    Args:
        towers: Both towers of one model.
        templates: Fixed prompts, each with one ``{}`` for the label's name.
    """
    return PVLRConfig(
        learn=False,
        templates=tuple(templates),
        base=PARTS[zero_shot_regions(towers)],
        base_scale=1.0 if towers.zero_shot is None else None,
    )


def zero_shot_cosines(seen: ImageFeatures, text: Float[Tensor, "c d"], regions: Regions) -> Float[Tensor, "b c"]:
    """Compute the scores of a zero-shot model: cosines of images and labels, before any scale and bias.

    Args:
        seen: Features of the image tower.
        text: Vectors of the labels.
        regions: The vectors that are compared: the pooled vector, the best patch, or the mean of both cosines.

    Example:
        >>> import torch
        >>> seen = ImageFeatures(patches=torch.eye(2).unsqueeze(0), pooled=torch.tensor([[3.0, 4.0]]))
        >>> zero_shot_cosines(seen, torch.eye(2), "both")
        tensor([[0.8000, 0.9000]])
    """
    return base_scores(seen.patches, seen.pooled, text, parts=PARTS[regions]).mean(dim=-1)
