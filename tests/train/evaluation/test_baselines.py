"""Zero-shot CLIP and the linear probe, on features whose answers are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.training_toys import toy_batch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.protocols import ImageFeatures
from pvlr.train.evaluation.baselines import (
    PooledFeatures,
    _fit_probe,
    _fit_two,
    linear_probe,
    pooled_features,
    zero_shot,
)

LABELS = LabelSet(("a", "b", "c"))


def toy_features(count: int, *, seed: int, noise: float, turned: bool = False) -> tuple[PooledFeatures, Tensor]:
    """Images are the sum of their labels' vectors plus noise; `turned`: the text vectors know nothing of it."""
    g = torch.Generator().manual_seed(seed)
    text = torch.eye(16)[:3]
    target = torch.randint(2, (count, 3), generator=g).float()
    vectors = F.normalize(target @ text + noise * torch.randn(count, 16, generator=g) + 1e-3, dim=-1)
    known = torch.rand(count, 3, generator=g) < 0.9
    return PooledFeatures(vectors, target, known), text.roll(5, dims=1) if turned else text


def test_zero_shot_finds_what_the_text_names_and_the_probe_what_can_be_learned() -> None:
    (train, text), (test, _) = toy_features(300, seed=0, noise=0.05), toy_features(200, seed=1, noise=0.05)
    turned = toy_features(1, seed=0, noise=0.05, turned=True)[1]
    assert zero_shot(train, test, text, LABELS).report.mAP > 0.99
    assert zero_shot(train, test, turned, LABELS).report.mAP < 0.7
    probe = linear_probe(train, test, LABELS)
    assert probe.report.mAP > 0.99
    assert probe.report.CF1 > 0.95
    assert tuple(probe.report.ap) == LABELS.names
    assert probe.detail.startswith("L2 strength ")


def test_zero_shot_ranks_by_the_cosine_alone_and_probabilities_are_calibrated() -> None:
    (train, text), (test, _) = toy_features(400, seed=0, noise=0.2), toy_features(300, seed=1, noise=0.2)
    found = zero_shot(train, test, 7.0 * text, LABELS, scale=100.0)
    other = zero_shot(train._replace(target=1 - train.target), test, text, LABELS)
    assert found.report.ap == pytest.approx(other.report.ap)
    assert found.report.OF1 > 0.8
    assert "2 fitted numbers" in found.detail


@pytest.mark.parametrize("start", [1.0, 100.0])
def test_two_numbers_are_the_maximum_likelihood(start: float) -> None:
    train, text = toy_features(400, seed=0, noise=0.3)
    cosines = train.vectors @ text.T
    scale, bias = _fit_two(cosines, train, start)
    x, y = cosines[train.known].numpy().reshape(-1, 1), train.target[train.known].numpy()
    reference = LogisticRegression(C=1e9, tol=1e-8, max_iter=1000).fit(x, y)
    assert scale == pytest.approx(reference.coef_.item(), rel=1e-2)
    assert bias == pytest.approx(reference.intercept_.item(), rel=1e-2)


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_probe_is_logistic_regression_over_the_known_labels(strength: float) -> None:
    train, _ = toy_features(200, seed=0, noise=0.3)
    test, _ = toy_features(50, seed=1, noise=0.3)
    mine = _fit_probe(train, strength)(test.vectors).numpy()
    mean, std = train.vectors.double().mean(0), train.vectors.double().std(0, correction=0)
    for label in range(3):
        rows = train.known[:, label]
        reference = LogisticRegression(C=1 / (strength * len(train.vectors)), tol=1e-9, max_iter=5000)
        reference.fit(((train.vectors - mean) / std)[rows].numpy(), train.target[rows, label].numpy())
        theirs = reference.decision_function(((test.vectors - mean) / std).numpy())
        np.testing.assert_allclose(mine[:, label], theirs, atol=5e-3, rtol=5e-3)


def test_unknown_labels_do_not_matter() -> None:
    (train, text), (test, _) = toy_features(100, seed=0, noise=0.3), toy_features(50, seed=1, noise=0.3)
    other = train._replace(target=torch.where(train.known, train.target, 1 - train.target))
    assert linear_probe(train, test, LABELS).report == linear_probe(other, test, LABELS).report
    assert zero_shot(train, test, text, LABELS).report == zero_shot(other, test, text, LABELS).report


def test_a_label_never_present_in_training_stays_finite() -> None:
    (train, _), (test, _) = toy_features(60, seed=0, noise=0.3), toy_features(50, seed=1, noise=0.3)
    found = linear_probe(train._replace(target=train.target * torch.tensor([1.0, 0.0, 1.0])), test, LABELS)
    assert found.report.absent == ()


def test_the_test_split_decides_nothing() -> None:
    (train, text), (test, _) = toy_features(200, seed=0, noise=0.5), toy_features(100, seed=1, noise=0.5)
    for other in (test._replace(target=1 - test.target), test._replace(vectors=test.vectors.roll(1, dims=0))):
        for fitted in (
            lambda kept: linear_probe(train, kept, LABELS),
            lambda kept: zero_shot(train, kept, text, LABELS),
        ):
            first, second = fitted(test), fitted(other)
            assert first.detail == second.detail
            assert first.report.mAP != second.report.mAP


def test_one_image_is_refused() -> None:
    one, _ = toy_features(1, seed=0, noise=0.1)
    with pytest.raises(ValueError, match="train: expected at least 2 images, got 1"):
        linear_probe(one, one, LABELS)


def test_features_are_normalised_and_in_order() -> None:
    def tower(images: Tensor) -> ImageFeatures:
        flat = images.flatten(1)
        return ImageFeatures(flat[:, None], 3 * flat)

    batches = [toy_batch(3, seed=0), toy_batch(2, seed=1)]
    found = pooled_features(tower, batches)
    expected = F.normalize(torch.cat([batch.image for batch in batches]).flatten(1), dim=-1)
    torch.testing.assert_close(found.vectors, expected)
    assert torch.equal(found.target, torch.cat([batch.target for batch in batches]))
