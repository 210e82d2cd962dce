"""Evaluation: each image once, in evaluation mode, ranked by logits."""

import pytest
import torch
from helpers.training_toys import LinearModel, Output, ToyModel, toy_batch
from torch import Tensor, nn

from pvlr.core.labels import LabelSet
from pvlr.core.metrics.report import multilabel_report
from pvlr.train.evaluation.predictions import evaluate, predict_logits

LABELS = LabelSet(("a", "b", "c"))


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_the_models_own_in_order_and_its_mode_is_kept(training: bool) -> None:
    model = ToyModel().train(training)
    batches = [toy_batch(4, seed=0), toy_batch(3, seed=1)]
    found = predict_logits(model, batches)
    assert model.training is training
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(batch.image).logits for batch in batches])
    assert torch.equal(found.logits, expected)
    assert found.indices.tolist() == [0, 1, 2, 3, 100, 101, 102]
    assert torch.equal(found.known, torch.cat([batch.known for batch in batches]))


def test_report_is_that_of_all_batches_together() -> None:
    batches = [toy_batch(40, seed=0), toy_batch(30, seed=1)]
    found = predict_logits(LinearModel(), batches)
    expected = multilabel_report(found.logits.sigmoid(), found.target, found.known, LABELS, scores=found.logits)
    assert evaluate(LinearModel(), batches, LABELS) == expected


class Saturated(nn.Module):
    def forward(self, images: Tensor) -> Output:
        return Output(100 + torch.arange(len(images), dtype=torch.float32)[:, None].expand(-1, 3))


def test_saturated_probabilities_are_still_ranked() -> None:
    batch = toy_batch(6)._replace(target=torch.zeros(6, 3), known=torch.ones(6, 3, dtype=torch.bool))
    batch.target[5] = 1
    assert evaluate(Saturated(), [batch], LABELS).mAP == 1.0


def test_bf16_predictions_come_back_as_float32_and_close() -> None:
    batch = toy_batch(5)
    exact, rough = (predict_logits(LinearModel(), [batch], precision=name).logits for name in ("float32", "bf16"))
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.1, rtol=0.05)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="batches: expected at least one batch to evaluate, got none"):
        predict_logits(LinearModel(), [])
