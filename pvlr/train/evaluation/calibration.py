"""Calibration after training: temperature and thresholds from validation pictures, and reliability diagrams."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from pvlr.console import say
from pvlr.core.metrics.calibration import (
    Reliability,
    calibration_error_of,
    fit_temperature,
    fit_thresholds,
    reliability,
)
from pvlr.core.metrics.ranking import average_precision, mean_average_precision
from pvlr.core.mixture import mixing_weights
from pvlr.core.models.baselines import BaselineModel, BaselineOutput
from pvlr.core.models.network import PVLR
from pvlr.data.batch import Batch
from pvlr.data.dataset import LabelledImages
from pvlr.inference.decision import Decision
from pvlr.train.config import CalibrationConfig
from pvlr.train.evaluation.predictions import Predictions, predict_logits
from pvlr.train.loop import FitConfig
from pvlr.train.monitoring.trackers import Trackers

__all__ = ["Calibrated", "calibrate", "calibrate_on", "draw_reliability", "write_reliability"]

SIDE, MARGIN = 360, 36
LEAST_POSITIVES = 3
"""Positives from which on a label has a threshold of its own."""
SHRINKAGES = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0)


class Calibrated(NamedTuple):
    """Result of a calibration.

    Attributes:
        decision: Temperature and thresholds.
        before: Reliability of the probabilities without the temperature.
        after: Reliability with it, on the same pictures.
        shrinkage: Shrinkage of the mixture with the best mAP, of those that are as likely as the configured one.
    """

    decision: Decision
    before: Reliability
    after: Reliability
    shrinkage: float

    def __str__(self) -> str:
        errors = [calibration_error_of(found) for found in (self.before, self.after)]
        return (
            f"thresholds: {self.decision.rule}, on {self.decision.fitted_on}; what was learned of a label "
            f"weighs half at {self.shrinkage:g} positives; temperature "
            f"{self.decision.temperature:.3f}, expected calibration error {errors[0]:.4f}, with it {errors[1]:.4f}"
        )


def calibrate(
    model: PVLR | BaselineModel,
    batches: Iterable[Batch],
    config: CalibrationConfig,
    *,
    fitted_on: str,
    device: torch.device | None = None,
    precision: str = "float32",
) -> Calibrated:
    """Fit the mixture's shrinkage, then a temperature, then a threshold for each label, on held-out pictures.

    A label without a positive or without a negative among them is left out of the fit: no threshold or temperature is
    better for it than another. It has the median of the others' thresholds; if no label has both, the temperature is 1.
    Labels with one or two positives share a threshold, which is fitted on all of them together.

    Args:
        model: The model, with its final weights.
        batches: The pictures.
        config: Criterion of the thresholds.
        fitted_on: Description of the pictures.
        device: Device of the model; None: the CPU.
        precision: ``"float32"`` or ``"bf16"``.

    Raises:
        ValueError: if there is no batch or a logit is not finite.
    """
    found, shrinkage = _best_mixture(model, batches, device=device, precision=precision)
    positive, negative = ((found.target > 0) & found.known), ((found.target == 0) & found.known)
    shown = positive.any(dim=0) & negative.any(dim=0)
    both = found.known & shown
    temperature = fit_temperature(found.logits, found.target, both) if bool(both.any()) else 1.0
    raw, scaled = found.logits.sigmoid(), (found.logits / temperature).sigmoid()
    rule: Any = {"by": config.by, "precision": config.precision}
    thresholds = fit_thresholds(scaled, found.target, found.known, **rule)
    few = shown & (positive.sum(dim=0) < LEAST_POSITIVES)
    if bool(few.any()):
        together = [part[:, few].reshape(-1, 1) for part in (scaled, found.target, found.known)]
        thresholds[few] = fit_thresholds(*together, **rule)
    decision = Decision(
        temperature=temperature,
        thresholds={
            name: value
            for name, value, present in zip(model.labels, thresholds.tolist(), shown.tolist(), strict=True)
            if present
        },
        rule="highest F1" if config.by == "f1" else f"precision {config.precision:g}",
        fitted_on=fitted_on,
    )
    before, after = (reliability(part, found.target, found.known) for part in (raw, scaled))
    return Calibrated(decision, before, after, shrinkage)


class _Apart(nn.Module):
    """A model whose ``logits`` are the base scores and the learned scores, concatenated, ``b 2c``."""

    def __init__(self, model: PVLR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> BaselineOutput:
        return self.forward_features(self.model.regions(images))

    def forward_features(self, regions: Tensor) -> BaselineOutput:
        base, learned = self.model.comparison.scores(regions, self.model.label_rows())
        known = self.model.mixture.complete(base, None)
        return BaselineOutput(torch.cat([known, cast(Tensor, learned)], dim=1))


@torch.no_grad()
def _best_mixture(
    model: PVLR | BaselineModel, batches: Iterable[Batch], *, device: torch.device | None, precision: str
) -> tuple[Predictions, float]:
    """Set the model's shrinkage to the one with the best mAP, and return predictions with it.

    It affects only the mixing weights: base scores and learned scores are computed once. A value whose log loss, with
    its best temperature, is above that of the configured one is not taken: mAP of a few pictures has too few values to
    choose by it alone, and no temperature undoes a weight that makes the probabilities of a label wrong.
    """
    if not isinstance(model, PVLR) or not (model.config.learn and model.config.parts):
        return predict_logits(model, batches, device=device, precision=precision), model.config.shrinkage
    buffer = model.mixture.shrinkage
    configured = buffer.item()
    found = predict_logits(_Apart(model), batches, device=device, precision=precision)
    base, learned = found.logits.chunk(2, dim=1)
    counts = model.label_rows().positives.cpu()

    def mixed(shrinkage: float) -> Tensor:
        return base + mixing_weights(counts, shrinkage) * learned

    def loss(shrinkage: float) -> float:
        logits = mixed(shrinkage)
        scaled = logits / fit_temperature(logits, found.target, found.known)
        return F.binary_cross_entropy_with_logits(scaled[found.known], found.target[found.known].to(scaled)).item()

    def quality(shrinkage: float) -> float:
        score = mean_average_precision(average_precision(mixed(shrinkage), found.target, found.known)).item()
        return -1.0 if math.isnan(score) else score

    best = configured
    if bool(found.known.any()):
        most = loss(configured)
        # The configured value comes first, so that it stays unless another is better.
        best = max((configured, *(value for value in SHRINKAGES if loss(value) <= most)), key=quality)
    buffer.fill_(best)
    return found._replace(logits=mixed(best)), best


def calibrate_on(
    pictures: LabelledImages | None,
    model: PVLR | BaselineModel,
    batches: Iterable[Batch],
    fit: FitConfig,
    config: CalibrationConfig,
    *,
    trackers: Trackers,
    step: int,
) -> Decision:
    """Fit a decision on the validation pictures, if there are any, and report it.

    Args:
        pictures: The validation split; None: there is none.
        model: The model, with its final weights.
        batches: Batches of the pictures, preprocessed.
        fit: Device and precision.
        config: Criterion of the thresholds.
        trackers: TensorBoard and other trackers, for the diagram.
        step: Number of steps done.

    Returns:
        Temperature and thresholds; the defaults if there are no pictures.
    """
    if pictures is None:
        say("thresholds: 0.5 for every label, not calibrated; data.val_split or data.val_share names pictures for that")
        return Decision()
    fitted_on = f"{len(pictures):,} pictures of {pictures.name}"
    found = calibrate(model, batches, config, fitted_on=fitted_on, device=fit.device, precision=fit.loop.precision)
    say(str(found))
    if trackers:
        write_reliability(trackers, found, step=step)
    return found.decision


def write_reliability(trackers: Trackers, found: Calibrated, *, step: int) -> None:
    """Write to TensorBoard and trackers: the diagram, the calibration error before and after, and the temperature."""
    trackers.picture("calibration/reliability", draw_reliability(found.before, found.after), step=step)
    errors = {"error": found.before, "error_calibrated": found.after}
    values = {name: calibration_error_of(part) for name, part in errors.items()}
    values["temperature"] = found.decision.temperature
    trackers.scalars({f"calibration/{name}": value for name, value in values.items()}, step=step)


def draw_reliability(before: Reliability, after: Reliability) -> Image.Image:
    """Draw the reliability diagram: frequency over probability, before and after calibration.

    A point's area grows with the number of labels in its bin; on the diagonal, probabilities equal frequencies.
    """
    image = Image.new("RGB", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(image)
    low, high = MARGIN, MARGIN + SIDE

    def place(x: float, y: float) -> tuple[float, float]:
        return low + SIDE * x, high - SIDE * y

    draw.rectangle((low, low, high, high), outline="#888888")
    draw.line((*place(0.0, 0.0), *place(1.0, 1.0)), fill="#888888")
    for tick in range(0, 11, 2):
        draw.text((*place(tick / 10, 0.0),), f"{tick / 10:.1f}", fill="black", anchor="ma")
        draw.text((low - 4, place(0.0, tick / 10)[1]), f"{tick / 10:.1f}", fill="black", anchor="rm")
    for found, colour, name, line in ((before, "#999999", "as trained", 0), (after, "#1f5fa8", "calibrated", 1)):
        filled = (found.count > 0).tolist()
        points = [
            (place(x, y), count)
            for x, y, count, some in zip(
                found.confidence.tolist(), found.frequency.tolist(), found.count.tolist(), filled, strict=True
            )
            if some
        ]
        draw.line([point for point, _ in points], fill=colour, width=2)
        most = max((count for _, count in points), default=1)
        for point, count in points:
            draw.circle(point, 2 + 7 * (count / most) ** 0.5, fill=colour)
        draw.text((low + 8, low + 6 + 14 * line), f"{name}: error {calibration_error_of(found):.4f}", fill=colour)
    draw.text((low + SIDE / 2, high + 18), "probability", fill="black", anchor="ma")
    draw.text((low, low - 16), "share of labels that are there", fill="black")
    return image
