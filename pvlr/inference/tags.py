"""Tags of a picture: labels, their probabilities, and their attention."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pvlr.core.functional import cosine_scores
from pvlr.core.labels import LabelSet
from pvlr.core.models.baselines import BaselineModel
from pvlr.core.models.network import PVLR
from pvlr.core.protocols import join_regions
from pvlr.core.shapes import expect
from pvlr.inference.decision import Decision

__all__ = ["Tag", "choose_tags", "evidence", "tag_images"]


class Tag(NamedTuple):
    """A label of a picture.

    Attributes:
        name: The label.
        probability: Probability, calibrated if the model is; a cosine similarity if its decision's ``scores`` is
            ``"similarity"``.
        attention: Attention of the label to the tower's patches, row by row, ``g g``; it sums to 1. None unless
            requested.
    """

    name: str
    probability: float
    attention: Float[Tensor, "g g"] | None = None


def choose_tags(
    labels: LabelSet,
    probabilities: Float[Tensor, " c"],
    thresholds: Sequence[float],
    attention: Float[Tensor, "c g g"] | None = None,
) -> list[Tag]:
    """Return the labels of one picture whose probability reaches their threshold, most probable first.

    Thresholds are compared in the width of the probabilities, as
    :func:`~pvlr.core.metrics.report.multilabel_report` does.

    Raises:
        ShapeError: if there is not one probability for each label.
        ValueError: if there is not one threshold for each, or a probability is NaN.

    Example:
        >>> choose_tags(LabelSet(("cat", "dog", "cow")), torch.tensor([0.5, 0.25, 0.75]), (0.5, 0.5, 0.5))
        [Tag(name='cow', probability=0.75, attention=None), Tag(name='cat', probability=0.5, attention=None)]
    """
    expect("probabilities", probabilities, "c", dtype="float", c=len(labels))
    if len(thresholds) != len(labels):
        raise ValueError(f"thresholds: expected one for each of the {len(labels)} labels, got {len(thresholds)}")
    unknown = [name for name, odd in zip(labels, probabilities.isnan().tolist(), strict=True) if odd]
    if unknown:
        raise ValueError(f"probabilities: expected numbers, got nan for {unknown[0]!r}")
    least = torch.tensor(thresholds, dtype=probabilities.dtype, device=probabilities.device)
    reached, values = (probabilities >= least).tolist(), probabilities.tolist()
    found = [
        Tag(name, value, None if attention is None else attention[column])
        for column, (name, value) in enumerate(zip(labels, values, strict=True))
        if reached[column]
    ]
    return sorted(found, key=lambda tag: -tag.probability)


def evidence(
    label_maps: Sequence[Float[Tensor, "b h c n"]], labels: Float[Tensor, "b c d"], patches: Float[Tensor, "b n d"]
) -> Float[Tensor, "b c g g"]:
    """Compute the map of each label over the patches: its attention in the last layer, the mean of the heads.

    Without attention to patches, it is the similarity of labels and patches, as ``softmax_n(10 cos)``.

    Args:
        label_maps: Attention of the labels per layer; empty if there is none.
        labels: Label vectors after the last layer.
        patches: Patch vectors after the last layer.

    Returns:
        ``b c g g`` for the ``g²`` patches of a square image, row by row; each map sums to 1.

    Example:
        >>> patches = torch.eye(4).unsqueeze(0)
        >>> evidence([], patches[:, 2:3], patches)[0, 0, 1, 0] > 0.99
        tensor(True)
    """
    if label_maps:
        maps = label_maps[-1].mean(dim=1)
    else:
        maps = torch.softmax(cosine_scores(patches, labels, scale=10.0), dim=1).transpose(1, 2)
    side = math.isqrt(maps.shape[-1])
    return maps.reshape(*maps.shape[:2], side, side)


@torch.no_grad()
def tag_images(
    model: PVLR | BaselineModel,
    images: Float[Tensor, "b 3 s s"],
    decision: Decision,
    *,
    threshold: float | None,
    attention: bool,
) -> list[list[Tag]]:
    """Return the labels of each image, see :meth:`~pvlr.inference.recognizer.Recognizer.tag_batch`.

    Tags of a baseline have no attention.

    Raises:
        ShapeError: if the images have another shape.
    """
    features, sees, maps = model.features(images, threads=True), model.sees, None
    regions = join_regions(features, sees)
    if isinstance(model, PVLR):
        output = model.forward_features(regions, maps=attention and sees != "pooled")
        logits = output.logits
        if attention:
            # The pooled vector has no position, so its labels are compared with the patches instead.
            patches = features.patches if sees == "pooled" else output.patches
            maps = evidence(output.label_maps, output.labels, patches).cpu()
    else:
        logits = model.forward_features(regions).logits
    labels = model.labels
    least = decision.for_labels(labels) if threshold is None else (threshold,) * len(labels)
    rows = decision.probabilities(logits).cpu()
    return [choose_tags(labels, row, least, None if maps is None else maps[index]) for index, row in enumerate(rows)]
