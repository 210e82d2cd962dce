"""Recognition without training: PVLR with nothing learned is what its towers know of names."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pvlr.core.base import BasePart, base_scores
from pvlr.core.decision import Decision
from pvlr.core.labels import LabelSet
from pvlr.core.model import PVLR
from pvlr.core.model_card import ModelCard
from pvlr.core.model_config import PVLRConfig
from pvlr.core.protocols import ImageFeatures, Regions
from pvlr.core.towers import Towers

PARTS: dict[Regions, tuple[BasePart, ...]] = {
    "pooled": ("pooled",),
    "patches": ("best",),
    "both": ("pooled", "best"),
    "all": ("pooled", "best"),
}
"""What of an image is compared, as scores of the base."""

__all__ = ["zero_shot_config", "zero_shot_cosines", "zero_shot_model", "zero_shot_regions"]


def zero_shot_regions(towers: Towers) -> Regions:
    """What of an image is compared with the labels: what the towers say, or as CLIP does, its pooled vector."""
    return "pooled" if towers.zero_shot is None else towers.zero_shot.regions


def zero_shot_config(towers: Towers, *, templates: Sequence[str] = ("a photo of a {}.",)) -> PVLRConfig:
    """The configuration of PVLR that is these towers' zero-shot recognition: fixed prompts, compared and no more.

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


@torch.no_grad()
def zero_shot_model(
    towers: Towers, labels: LabelSet | Sequence[str], *, templates: Sequence[str] = ("a photo of a {}.",)
) -> PVLR:
    """A model that recognises labels by their names, with nothing trained; it can be saved, exported and asked as any.

    Its numbers are probabilities where the towers bring a scale and a bias that make them such (``pvlr:photos``,
    SigLIP). Those of a plain CLIP do not: its scale was trained to tell one caption of a batch from the others, and
    what it says of a single label is no probability. Then the numbers are cosine similarities, which rank the labels,
    and ``model.decision.scores`` says ``"similarity"``.

    Args:
        towers: Both towers of one model.
        labels: What to recognise, or the names.
        templates: Fixed prompts, each with one ``{}`` for the label's name.

    Raises:
        LabelError: where they are no labels.
        TowerError: where a prompt is too long for the text tower.

    Example:
        >>> from pvlr.core.towers import load_towers
        >>> model = zero_shot_model(load_towers("pvlr:scenes-clip"), ["red circle", "blue star"])
        >>> model.decision.scores, model.config.base
        ('similarity', ('pooled',))
        >>> sorted(tag.name for tag in model.tag(torch.zeros(3, 40, 30)))
        ['blue star', 'red circle']
    """
    model = PVLR.from_towers(zero_shot_config(towers, templates=templates), LabelSet.of(labels), towers).eval()
    if towers.zero_shot is None:
        model.mixture.bias.zero_()
        model.decision = Decision(scores="similarity")
    else:
        told = towers.zero_shot
        thresholds = dict.fromkeys(model.labels, told.threshold)
        model.decision = Decision(thresholds=thresholds, rule="one for all labels", fitted_on=told.fitted_on)
    model.card = ModelCard(data=("nothing: what the towers know of the labels' names",))
    return model


def zero_shot_cosines(seen: ImageFeatures, text: Float[Tensor, "c d"], regions: Regions) -> Float[Tensor, "b c"]:
    """What a zero-shot model compares: cosines of images and labels, before any scale and bias.

    Args:
        seen: What the image tower saw.
        text: Vectors of the labels.
        regions: What of it is compared: the pooled vector, the best patch, or the mean of both cosines.

    Example:
        >>> seen = ImageFeatures(patches=torch.eye(2).unsqueeze(0), pooled=torch.tensor([[3.0, 4.0]]))
        >>> zero_shot_cosines(seen, torch.eye(2), "both")
        tensor([[0.8000, 0.9000]])
    """
    return base_scores(seen.patches, seen.pooled, text, parts=PARTS[regions]).mean(dim=-1)
