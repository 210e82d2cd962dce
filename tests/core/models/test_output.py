"""The comparison of images and labels, part by part: each answer, and how they become one logit."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from helpers.model_toys import DIM, HEADS, build, regions_for
from helpers.strategies import Draw, draws, perturb
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core import PVLR
from pvlr.core.base import base_scores
from pvlr.core.functional import standardise
from pvlr.core.models import output
from pvlr.core.models.output import Comparison, LabelRows, PVLROutput, weigh_answers
from pvlr.core.protocols import split_regions

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def made(source_dim: int = 0, **chosen: object) -> PVLR:
    """A small model in double precision whose every parameter has moved."""
    switches = {"heads": HEADS, "source_dim": source_dim, "base": ("competition", "focused", "pooled"), **chosen}
    model = build(switches)
    return perturb(model, Draw(5), 0.2).eval()


def rows_of(model: PVLR) -> LabelRows:
    """Rows of the model's labels: one never trained, the others with known positives."""
    with torch.no_grad():
        rows = model.label_rows()
    count = len(rows.positives)
    return rows._replace(
        positives=torch.arange(count).double() * 5,
        bias=torch.linspace(-1, 2, count).double(),
        member=torch.tensor([0.0, *[1.0] * (count - 1)]).double(),
    )


def answers_of(model: PVLR, compare: Comparison, regions: Tensor, rows: LabelRows) -> tuple[Tensor, ...]:
    """Every answer, by the blocks themselves."""
    seen, learned = split_regions(regions, "all", model.source_dim), compare.learned
    assert learned is not None
    assert seen.pooled is not None
    patches = learned.adapter(seen.patches)
    attended = learned.attention(rows.fused, patches)
    visual = learned.semantic(patches, rows.name if compare.parts else rows.fused, attended.gathered)
    whole = None if seen.source is None else learned.adapter.whole(seen.pooled, seen.source)
    scores = learned.head(attended.patches, rows.fused, looked=attended.labels, visual=visual, whole=whole)
    features = standardise(seen.pooled if seen.source is None else seen.source)
    own = torch.stack([(features * row).sum(dim=-1) for row in rows.own], dim=-1)
    return scores + rows.bias, own + rows.bias


@pytest.mark.parametrize("source_dim", [0, 5])
@pytest.mark.parametrize("base", [(), ("competition", "focused", "pooled")])
@torch.no_grad()
def test_answers_are_those_of_the_blocks_and_the_label_s_bias(source_dim: int, base: tuple[str, ...]) -> None:
    model = made(source_dim, base=base)
    compare, rows, regions = model.comparison, rows_of(model), regions_for(model, Draw(1), 3, 4)
    found = compare.answers(regions, rows)
    assert len(found) == 2
    for one, wanted in zip(found[1], answers_of(model, compare, regions, rows), strict=True):
        assert_close(one, wanted, **EXACT)
    # A label with 5 known positives: a third by its patches, two thirds by the whole image.
    base_found, learned = compare.scores(regions, rows)
    assert_close(learned[:, 1], found[1][0][:, 1] / 3 + 2 * found[1][1][:, 1] / 3, **EXACT)
    assert (base_found is None) == (not base)
    if base:
        assert torch.equal(base_found, found[0])
    logits = compare(regions, rows).logits
    assert_close(logits, model.mixture(base_found, learned, rows.positives), **EXACT)


@torch.no_grad()
def test_a_base_is_of_the_names_among_those_that_compete() -> None:
    model = made()
    compare, rows, regions = model.comparison, rows_of(model), regions_for(model, Draw(1), 3, 4)
    rows = rows._replace(name=rows.name + 0.3)  # Of other texts than the anchors.
    found = compare.answers(regions, rows)[0]
    seen = split_regions(regions, "all", 0)
    members = torch.tensor([-1] + [0] * (len(rows.name) - 1))
    wanted = base_scores(
        seen.patches, seen.pooled, rows.name, parts=compare.parts, scale=compare.scale, anchors=compare.anchors,
        members=members,
    )  # fmt: skip
    assert_close(found, wanted, **EXACT)
    # Values between, as of an exported program in half precision, are rounded.
    near = rows._replace(member=(rows.member - 0.001).abs())
    assert torch.equal(compare.answers(regions, near)[0], found)


@torch.no_grad()
def test_without_learning_there_is_the_base_alone() -> None:
    model = made(learn=False)
    compare, rows = model.comparison, rows_of(model)
    assert compare.learned is None
    regions = regions_for(model, Draw(1), 3, 4)
    base, answers = compare.answers(regions, rows)
    assert answers == ()
    assert compare.scores(regions, rows)[1] is None
    out = compare(regions, rows, maps=True)
    assert_close(out.logits, model.mixture(base, None), **EXACT)
    assert torch.equal(out.patches, regions[:, 1:])
    assert out.labels.shape == (3, len(rows.name), DIM)
    assert all(torch.equal(one, rows.name) for one in out.labels)
    assert (out.label_maps, out.patch_maps, out.answers) == ((), (), ())
    # Where the pooled vector is all that is read, it is the only patch.
    alone = replace(compare, sees="pooled", parts=("pooled",))
    members = {"anchors": compare.anchors, "members": rows.member.long() - 1}
    pooled = base_scores(regions[:, :1], regions[:, 0], rows.name, parts=("pooled",), scale=compare.scale, **members)
    assert_close(alone.answers(regions[:, :1], rows)[0], pooled, **EXACT)


@torch.no_grad()
def test_in_training_each_answer_is_completed_and_the_logits_are_their_mean() -> None:
    model = made()
    compare, rows, regions = model.comparison, rows_of(model), regions_for(model, Draw(1), 3, 4)
    base, answers = compare.answers(regions, rows)
    compare.mixture.train()
    compare.mixture.drop = 0.0
    out = compare(regions, rows)
    for found, learned in zip(out.answers, answers, strict=True):
        assert_close(found, compare.mixture.complete(base, learned), **EXACT)
    assert_close(out.logits, (out.answers[0] + out.answers[1]) / 2, **EXACT)
    # One answer is weighted by its known positives in training too.
    one = compare(regions, rows._replace(own=rows.own[:, :0]))
    assert one.answers == ()
    assert_close(one.logits, compare.mixture(base, answers[0], rows.positives), **EXACT)


@torch.no_grad()
def test_maps_come_when_asked_for_alone() -> None:
    model = made()
    compare, rows, regions = model.comparison, rows_of(model), regions_for(model, Draw(1), 3, 4)
    assert compare(regions, rows).label_maps == compare(regions, rows).patch_maps == ()
    out = compare(regions, rows, maps=True)
    assert [one.shape for one in (*out.label_maps, *out.patch_maps)] == [
        (3, HEADS, len(rows.name), 4), (3, HEADS, 4, len(rows.name)),
    ]  # fmt: skip
    assert compare.answers(regions, rows)[1][0].shape == (3, len(rows.name))


@torch.no_grad()
def test_label_rows_take_the_width_of_the_blocks_and_numbers_are_float32() -> None:
    model = made().float()
    compare, regions = model.comparison, regions_for(model, Draw(1), 3, 4).half()
    rows = LabelRows(*(x.half() for x in rows_of(model)))
    compare = replace(compare, anchors=compare.anchors.float())
    base, answers = compare.answers(regions.float(), rows)
    assert base is not None
    assert base.dtype == torch.float32
    assert [one.dtype for one in answers] == [torch.float32] * 2
    # The label's own weights and bias are float32 before they are used: sums of half precision would be others.
    large = rows._replace(bias=torch.full_like(rows.bias, 2048.0))
    for found, wanted in zip(compare.answers(regions.float(), large)[1], answers, strict=True):
        assert_close(found - 2048.0, wanted - rows.bias.float(), rtol=0, atol=5e-4)


@torch.no_grad()
def test_vectors_of_half_precision_are_compared_as_the_blocks_under_autocast() -> None:
    model = made(5).float()
    compare, regions = model.comparison, regions_for(model, Draw(1), 3, 4).float()
    rows = LabelRows(*(x.float() for x in rows_of(model)))
    wanted = compare(regions, rows).logits
    assert compare.learned is not None
    widths: list[torch.dtype] = []
    compare.learned.attention.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = compare(regions.bfloat16(), rows).logits
    assert widths == [torch.float32]  # Of label vectors, as of the blocks' own weights.
    assert logits.dtype == torch.float32
    assert_close(logits, wanted, rtol=0.1, atol=0.3)


@torch.no_grad()
def test_names_are_compared_in_the_precision_of_the_images() -> None:
    model = made(learn=False)
    compare, regions = model.comparison, regions_for(model, Draw(1), 3, 4)
    rows = LabelRows(*(x.float() for x in rows_of(model)))
    rounded = LabelRows(*(x.double() for x in rows))
    found = compare.answers(regions, rows)[0]
    assert found is not None
    assert found.dtype == regions.dtype == torch.float64
    assert torch.equal(found, compare.answers(regions, rounded)[0])


@torch.no_grad()
def test_blocks_without_parameters_compute_as_the_vectors() -> None:
    model = made(adapter_width=0, direction="none", feedforward=0)
    compare, rows, regions = model.comparison, rows_of(model), regions_for(model, Draw(1), 3, 4)
    assert compare.learned is not None
    assert not [*compare.learned.adapter.parameters(), *compare.learned.attention.parameters()]
    for one, wanted in zip(compare.answers(regions, rows)[1], answers_of(model, compare, regions, rows), strict=True):
        assert_close(one, wanted, **EXACT)


@torch.no_grad()
def test_it_reads_no_source_and_learns_nothing_unless_told() -> None:
    model = made(learn=False)
    given = model.comparison
    compare = Comparison(given.mixture, given.parts, given.scale, given.anchors, "all")
    rows, regions = rows_of(model), regions_for(model, Draw(1), 3, 4)
    assert torch.equal(compare(regions, rows).logits, given(regions, rows).logits)


@given(
    draws(), st.integers(1, 5), st.integers(1, 12), st.integers(0, 20), st.booleans(), st.booleans(),
    st.sampled_from(["both", "labels", "none"]), st.sampled_from([0, 5]),
    st.sampled_from([(), ("competition", "focused", "pooled")]),
)  # fmt: skip
def test_with_many_labels_a_few_images_are_compared_at_a_time(
    draw: Draw,
    b: int,
    most: int,
    kept: int,
    learn: bool,
    training: bool,
    direction: str,
    source_dim: int,
    base: tuple[str, ...],
) -> None:
    model = made(base=base if learn else ("pooled",), learn=learn, direction=direction, source_dim=source_dim)
    model.train(training)
    regions = regions_for(model, draw, b, 4).requires_grad_()
    weights = [regions, *(p for p in model.parameters() if p.requires_grad)]

    def found(maps: bool) -> tuple[PVLROutput, list[Tensor | None]]:
        torch.manual_seed(0)  # In training a picture may be drawn without its base.
        out = model.forward_features(regions, maps=maps)
        return out, list(torch.autograd.grad(out.logits.square().sum(), weights, allow_unused=True))

    (whole, slopes), (_, slopes_of_maps) = found(False), found(True)
    calls = mock.patch.object(output, "checkpoint", wraps=output.checkpoint)
    with mock.patch.multiple(output, VECTORS_AT_ONCE=most, VECTORS_KEPT=kept), calls as called:
        parts, slopes_of_parts = found(True)
        count = len(model.labels)
        images = max(1, most // count)
        assert called.call_count == (-(-b // images) if b > images and b * count > kept else 0)
        assert_close(parts._replace(label_maps=(), patch_maps=()), whole, **EXACT)
        for one, other, wanted in zip(slopes_of_parts, slopes_of_maps, slopes, strict=True):
            assert (one is None) == (other is None) == (wanted is None)
            assert one is None or torch.allclose(one, wanted, **EXACT)
        twice = called.call_count
        with torch.no_grad():
            torch.manual_seed(0)
            assert_close(model.forward_features(regions, maps=True), parts, **EXACT)
        assert called.call_count == twice, "without gradients nothing is computed twice"
    assert_close(model.forward_features(regions, maps=True).label_maps, parts.label_maps, **EXACT)


@given(draws(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([0, 1, 4, 7]))
def test_rows_are_joined_and_split_again(draw: Draw, c: int, d: int, k: int) -> None:
    rows = LabelRows(
        draw.normal(c, d), draw.normal(c, d), draw.normal(c, k), draw.normal(c), draw.levels(9, c),
        draw.chance(0.5, c).double(),
    )  # fmt: skip
    joined = rows.joined()
    assert joined.shape == (c, 2 * d + k + 3)
    assert torch.equal(joined[:, -1], rows.member)
    for found, wanted in zip(LabelRows.split(joined, d), rows, strict=True):
        assert torch.equal(found, wanted)
    half = LabelRows(*(x.half() for x in rows)).joined()
    assert half.dtype == torch.float32
    assert torch.equal(half, joined.half().float())


@given(draws(), st.integers(1, 3), st.integers(1, 4))
def test_answers_are_weighted_by_known_positives(draw: Draw, b: int, c: int) -> None:
    patches, whole, counts = draw.normal(b, c), draw.normal(b, c), draw.levels(99, c)
    found = weigh_answers((patches, whole), counts)
    for image in range(b):
        for label in range(c):
            n = counts[label].item()
            wanted = (n * patches[image, label] + 10 * whole[image, label]) / (n + 10)
            assert found[image, label].item() == pytest.approx(wanted.item(), abs=1e-9)
    assert weigh_answers((patches,), counts) is patches
    single = weigh_answers((patches.float(), whole.float()), counts)
    assert single.dtype == torch.float32
