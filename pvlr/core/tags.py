"""What is said about a picture: labels, how probable they are, and where the model looked."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pvlr.core.functional import cosine_scores
from pvlr.core.labels import LabelSet
from pvlr.core.protocols import join_regions
from pvlr.core.shapes import expect

if TYPE_CHECKING:
    from pvlr.core.model import PVLR

__all__ = ["Tag", "choose_tags", "evidence", "tag_images"]


class Tag(NamedTuple):
    """A label that a picture has.

    Attributes:
        name: The label.
        probability: Calibrated, where the model was; a cosine similarity, where its decision's ``scores`` say so.
        attention: Where the label looked, row by row of the tower's patches, ``g g``; it sums to 1. None unless asked
            for.
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
    """The labels of one picture whose probability reaches their threshold, most probable first.

    Thresholds are compared in the width of the probabilities, as :func:`~pvlr.core.report.multilabel_report` does.

    Raises:
        ShapeError: where there is not one probability for each label.
        ValueError: where there is not one threshold for each, or a probability is NaN.

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
    """Where each label finds what it is: its attention in the last layer, the mean of the heads.

    Labels that do not look at patches have none; their similarities with the patches stand for it, as
    ``softmax_n(10 cos)``.

    Args:
        label_maps: Per layer where the labels looked; empty where they do not.
        labels: Label vectors at the end.
        patches: Patch vectors at the end.

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
    model: "PVLR", images: Float[Tensor, "b 3 s s"], *, threshold: float | None, attention: bool
) -> list[list[Tag]]:
    """What a model says of images, see :meth:`~pvlr.core.model.PVLR.tag_batch`.

    Raises:
        ShapeError: where they are no such images.
    """
    size = model.image.image_size
    expect("images", images, "b rgb height width", dtype="float", rgb=3, height=size, width=size)
    seen, sees = model.image(images), model.sees
    output = model.forward_features(join_regions(seen, sees), maps=attention and sees != "pooled")
    # The pooled vector says what is there and not where: its labels are looked for among the patches all the same.
    patches = seen.patches if sees == "pooled" else output.patches
    where = evidence(output.label_maps, output.labels, patches).cpu() if attention else None
    decision, labels = model.decision, model.labels
    least = decision.for_labels(labels) if threshold is None else (threshold,) * len(labels)
    rows = decision.probabilities(output.logits).cpu()
    return [choose_tags(labels, row, least, None if where is None else where[index]) for index, row in enumerate(rows)]
