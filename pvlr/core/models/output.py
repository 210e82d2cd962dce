"""The output of PVLR, its label vectors, and the comparison of images and labels that computes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention, DualModalOutput, RelationMap
from pvlr.core.base import BasePart, base_scores
from pvlr.core.functional import standardise, upcast, without_autocast
from pvlr.core.head import SimilarityHead
from pvlr.core.mixture import Mixture, mixing_weights
from pvlr.core.protocols import Regions, split_regions
from pvlr.core.semantic import SemanticPooling

__all__ = ["Comparison", "LabelParts", "LabelRows", "Learned", "PVLROutput", "weigh_answers"]

HALF_FROM = 10.0
"""Positives of a label from which on its patches have more weight than the whole image (docs/results.md)."""
VECTORS_AT_ONCE = 16_384
"""Vectors, one of each label for each image, that are computed at a time where there are more of them."""
VECTORS_KEPT = 65_536
"""Vectors whose intermediate values are kept for a backward pass; of more, each part is computed once more there."""

_Compared = tuple[Tensor | None, tuple[Tensor, ...], DualModalOutput | None]


class PVLROutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        logits: `b c`, float32; their sigmoids are the probabilities.
        labels: context-aware label vectors, `b c d`.
        patches: semantic-related patch vectors, `b n d`.
        label_maps: attention of labels to patches per layer, `b h c n`; empty unless requested.
        patch_maps: attention of patches to labels per layer, `b h n c`; empty unless requested.
        answers: in training, where ``logits`` are a mean of several: each of them, `b c`. A loss on each trains it to
            be complete by itself; with a loss on their mean, one could rely on another.
    """

    logits: Float[Tensor, "b c"]
    labels: Float[Tensor, "b c d"]
    patches: Float[Tensor, "b n d"]
    label_maps: tuple[Tensor, ...]
    patch_maps: tuple[Tensor, ...]
    answers: tuple[Float[Tensor, "b c"], ...] = ()


class LabelParts(NamedTuple):
    """Inputs of the fusion of label vectors; None where the fusion does not read one.

    Attributes:
        knowledge: vectors of the fixed prompts, `c d`.
        knowledge_map: their relation map, `h c c`.
        context: vectors of the learnable prompts, `c d`.
        context_map: their relation map, `h c c`.
    """

    knowledge: Tensor | None
    knowledge_map: RelationMap | None
    context: Tensor | None
    context_map: RelationMap | None


class LabelRows(NamedTuple):
    """Label vectors and values that an image is compared with, one row per label.

    Attributes:
        fused: Label vectors ``T`` of both kinds of prompts, `c d`.
        name: Vectors of the fixed prompts from the text tower, `c d`.
        own: Learned weights of the label for the features of the whole image, `c k`.
        bias: Learned bias of the label, `c`.
        positives: Number of its known positives in training, `c`.
        member: 1 where it is one of the labels that were trained on, else 0, `c`.
    """

    fused: Float[Tensor, "c d"]
    name: Float[Tensor, "c d"]
    own: Float[Tensor, "c k"]
    bias: Float[Tensor, " c"]
    positives: Float[Tensor, " c"]
    member: Float[Tensor, " c"]

    def joined(self) -> Float[Tensor, "c r"]:
        """Return all as one tensor, ``r = 2 d + k + 3``, float32 or wider: an exported program's input for labels.

        Example:
            >>> zeros = torch.zeros
            >>> LabelRows(zeros(2, 4), zeros(2, 4), zeros(2, 0), zeros(2), zeros(2), zeros(2)).joined().shape
            torch.Size([2, 11])
        """
        columns = (self.fused, self.name, self.own, *(x.unsqueeze(-1) for x in self[3:]))
        return torch.cat([upcast(x) for x in columns], dim=-1)

    @classmethod
    def split(cls, joined: Float[Tensor, "c r"], dim: int) -> "LabelRows":
        """Split a tensor of :meth:`joined`.

        Args:
            joined: ``c r``.
            dim: Joint width ``d``.
        """
        fused, name, own, *rest = joined.split([dim, dim, joined.shape[-1] - 2 * dim - 3, 1, 1, 1], dim=-1)  # type: ignore[no-untyped-call]
        return cls(fused, name, own, *(x.squeeze(-1) for x in rest))


@dataclass(frozen=True, eq=False)
class Learned:
    """The trained blocks that relate and compare images and labels."""

    adapter: VisualAdapter
    attention: DualModalAttention
    semantic: SemanticPooling
    head: SimilarityHead


# No equality of tensors; and a hash of fields is asked by torch.compile (2.11) while the object is still being made.
@dataclass(frozen=True, eq=False)
class Comparison:
    """The last part of every forward pass: base scores, learned scores, and both as one logit.

    Attributes:
        mixture: Combines both into one logit.
        parts: Scores of the base.
        scale: Factor of its cosines.
        anchors: Vectors of the names that compete in it, `a d`.
        sees: The vectors of an image that are joined.
        source_dim: Width of the features the pooled vector was computed from; 0: they are not provided.
        learned: The trained blocks; None: there is only the base.
    """

    mixture: Mixture
    parts: tuple[BasePart, ...]
    scale: float
    anchors: Tensor
    sees: Regions
    source_dim: int = 0
    learned: Learned | None = None

    def __call__(self, regions: Float[Tensor, "b m d"], rows: LabelRows, maps: bool = False) -> PVLROutput:
        """Compute logits of labels in images.

        Args:
            regions: Vectors of the images, as :func:`~pvlr.core.protocols.join_regions` joined them.
            rows: The labels.
            maps: Whether to return the attention maps too.
        """
        base, answers, attended = self._by_images(regions, rows, maps)
        if attended is None:
            patches = split_regions(regions, self.sees, self.source_dim).patches
            labels = rows.name.expand(regions.shape[0], -1, -1)
            return PVLROutput(self.mixture(base, None), labels, patches, (), ())
        each: tuple[Tensor, ...] = ()
        if self.mixture.training and len(answers) > 1:
            each = self.mixture.each(base, answers)
            logits = torch.stack(each).mean(dim=0)  # A loss on the mean trains all of them too.
        else:
            logits = self.mixture(base, weigh_answers(answers, rows.positives), rows.positives)
        return PVLROutput(logits, attended.labels, attended.patches, attended.label_maps, attended.patch_maps, each)

    def scores(self, regions: Float[Tensor, "b m d"], rows: LabelRows) -> tuple[Tensor | None, Tensor | None]:
        """Return the base ``b c p`` and the learned scores ``b c``, before they are mixed; None where absent."""
        base, answers = self.answers(regions, rows)
        return base, weigh_answers(answers, rows.positives) if answers else None

    def answers(
        self, regions: Float[Tensor, "b m d"], rows: LabelRows
    ) -> tuple[Tensor | None, tuple[Float[Tensor, "b c"], ...]]:
        """Return the base, and each learned score: of patches and labels, then of the whole image's features."""
        return self._by_images(regions, rows, False)[:2]

    def _by_images(self, regions: Tensor, rows: LabelRows, maps: bool) -> _Compared:
        """Compare a few images at a time where labels are many, which bounds the memory of all that is in between."""
        if torch.compiler.is_compiling():  # A traced graph must be valid for any number of either, so none is read.
            return self._compare(regions, rows, maps)
        count, with_gradient = len(rows.name), torch.is_grad_enabled()
        images = max(1, VECTORS_AT_ONCE // count)
        if len(regions) <= images or (with_gradient and len(regions) * count <= VECTORS_KEPT):
            return self._compare(regions, rows, maps)
        compare: Callable[..., _Compared] = self._compare
        if with_gradient:
            compare = partial(checkpoint, self._compare, use_reentrant=False, preserve_rng_state=False)
        joined: _Compared | None = None
        for start in range(0, len(regions), images):
            joined = _write(joined, compare(regions[start : start + images], rows, maps), start, len(regions))
        return cast(_Compared, joined)

    def _compare(self, regions: Tensor, rows: LabelRows, maps: bool) -> _Compared:
        seen = split_regions(regions, self.sees, self.source_dim)
        pooled = regions[:, 0] if seen.pooled is None else seen.pooled
        base = None
        if self.parts:
            # Only whether a label is an anchor matters, not its index.
            members = rows.member.round().to(torch.int64) - 1
            names, anchors = (x.to(regions.dtype) for x in (rows.name, self.anchors))
            base = base_scores(
                seen.patches, pooled, names, parts=self.parts, scale=self.scale, anchors=anchors, members=members
            )
        if self.learned is None:
            return base, (), None
        learned = self.learned
        fused = rows.fused.to(_width_of(learned, regions))
        patches = learned.adapter(seen.patches)
        attended = learned.attention(fused, patches, maps=maps)
        # Evidence is gathered by the vectors of the names; without a base, by the fused ones.
        known = rows.name.to(fused) if self.parts else fused
        visual = learned.semantic(patches, known, attended.gathered)
        whole = None if seen.source is None else learned.adapter.whole(pooled, seen.source)
        scores = learned.head(attended.patches, fused, looked=attended.labels, visual=visual, whole=whole)
        with without_autocast(scores):
            answers = [scores]
            if rows.own.shape[-1]:
                features = upcast(pooled if seen.source is None else seen.source)
                answers.append(standardise(features) @ upcast(rows.own).transpose(0, 1))
            # What labels gathered is as large as they are, and nothing after this reads it.
            return base, tuple(answer + upcast(rows.bias) for answer in answers), attended._replace(gathered=None)


def _write(joined: Any, part: Any, start: int, count: int) -> Any:
    """Write the results of some images into those of all ``count``, which are made for the first of them.

    Parts that were kept until they can be joined would lie in memory between what is computed for the next images, and
    the allocator could give none of that back: with 10,000 labels it held three times what is needed.
    """
    if part is None:
        return None
    if isinstance(part, Tensor):
        whole = part.new_empty(count, *part.shape[1:]) if joined is None else joined
        whole[start : start + len(part)] = part
        return whole
    fields = [_write(joined and joined[i], value, start, count) for i, value in enumerate(part)]
    return type(part)(*fields) if hasattr(part, "_fields") else tuple(fields)


def weigh_answers(answers: Sequence[Float[Tensor, "b c"]], positives: Float[Tensor, " c"]) -> Float[Tensor, "b c"]:
    """Combine scores: ``β S₁ + (1 − β) S₂`` with ``β = n / (n + 10)``, ``n`` the known positives of a label.

    Scores of the whole image's features can be learned from few pictures, attention to patches needs many.

    Args:
        answers: One or two, ``b c``.
        positives: ``n``, ``c``.

    Example:
        >>> weigh_answers((torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])), torch.tensor([0.0, 10.0]))
        tensor([[0.0000, 0.5000]])
    """
    if len(answers) == 1:
        return answers[0]
    of_patches, of_whole = answers
    share = mixing_weights(positives, HALF_FROM).to(of_patches.dtype)
    return share * of_patches + (1 - share) * of_whole


def _width_of(learned: Learned, regions: Tensor) -> torch.dtype:
    parameters = [*learned.adapter.parameters(), *learned.attention.parameters()]
    return parameters[0].dtype if parameters else regions.dtype
