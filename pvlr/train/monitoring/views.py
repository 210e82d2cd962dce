"""Figures of a model in training for TensorBoard and trackers: pictures, attention, relations, curves, vectors."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from pvlr.core.functional import fuse_maps
from pvlr.core.labels import LabelSet
from pvlr.core.models.network import PVLR, PVLROutput
from pvlr.data.contact_sheet import contact_sheet
from pvlr.data.dataset import LabelledImages
from pvlr.data.drawing import Line, Tile, heat_map, sheet
from pvlr.data.overlay import overlay, to_picture
from pvlr.data.sampling import EpochSampler
from pvlr.data.transforms import ImageTransform, TransformConfig
from pvlr.train.config import MAY_CHANGE
from pvlr.train.evaluation.predictions import Predictions, autocast
from pvlr.train.monitoring.trackers import Trackers

__all__ = ["Views", "shown_inputs", "verdicts"]

PICTURES, LOOKED_AT, TOP, INPUTS, LINES, SIDE = 8, 4, 3, 16, 6, 224
MOST_LISTED = 40
"""Maximum number of values of a list in a text."""
MOST_CURVES = 200
"""Maximum number of labels with a precision-recall curve: each is several kilobytes at every evaluation."""
MOST = 80
"""Maximum number of labels on a heat map: more would not be legible."""
RESULTS = ("test/mAP", "test/CF1", "test/OF1", "train/loss")
CHARTS = {
    "training": {
        "loss": "train/loss.*",
        "gradient by block": "gradient/.*",
        "learning rates": "lr/.*",
        "share of the knowledge relation, by head": "fusion/mix_head_.*",
    },
    "test": {"precision, recall, F1": "(test|validation)/.*", "average precision by label": "ap/.*"},
}


class Views:
    """Figures of a model's predictions and internals, on the same few test pictures at every evaluation.

    Args:
        trackers: TensorBoard and other trackers; curves, histograms and label vectors are for TensorBoard alone.
        model: The model; internals are shown only of a PVLR.
        test: The test split; its own transform is not used.
        transform: Preprocessing of the pictures.
        device: Device of the model.
        precision: ``"float32"`` or ``"bf16"``.

    Raises:
        DataError: if a picture cannot be read, naming it.
    """

    def __init__(
        self,
        trackers: Trackers,
        model: nn.Module,
        test: LabelledImages,
        transform: TransformConfig,
        *,
        device: torch.device,
        precision: str,
    ) -> None:
        self._trackers, self._model, self._device, self._precision = trackers, model, device, precision
        self._labels = test.labels
        positive = (test.target * test.known).sum(dim=1) > 0
        candidates = positive.nonzero().flatten().tolist() or list(range(len(test)))
        count = min(PICTURES, len(candidates))
        # Evenly spaced over the split, which may be sorted by label.
        self._rows = [candidates[place * len(candidates) // count] for place in range(count)]
        plain = test.with_transform(ImageTransform(transform))
        self._inputs = torch.stack([plain[row].image for row in self._rows])
        self._pictures = [to_picture(one, mean=transform.mean, std=transform.std) for one in self._inputs]
        self._regions: Tensor | None = None

    def about(self, texts: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the description of the run, for the tabs of texts and hyperparameters, and the layout of the charts.

        Args:
            texts: Mapping of title to a JSON value.
            sections: The configuration, section by section.
        """
        settings = {f"{part}.{name}": value for part, fields in sections.items() for name, value in fields.items()}
        settings = {
            name: value
            for name, value in settings.items()
            # Hyperparameters are the fields that affect the results.
            if name == "loop.epochs" or (value is not None and not name.startswith(MAY_CHANGE))
        }
        settings = {name: _shortened(value) for name, value in settings.items()}
        written = {title: f"```json\n{json.dumps(_shortened(text), indent=1)}\n```" for title, text in texts.items()}
        if (board := self._trackers.board) is not None:
            board.about(written, settings, RESULTS)
            board.charts(CHARTS)

    def inputs(self, shown: Image.Image) -> None:
        """Write the first training inputs, see :func:`shown_inputs`."""
        self._trackers.picture("start/inputs", shown, step=0, kind="jpeg")

    @torch.no_grad()
    def evaluation(self, step: int, found: Predictions) -> None:
        """Write figures of the predictions on the test pictures, and of the internals.

        Args:
            step: Number of steps done.
            found: Predictions of the whole test split by the same weights.
        """
        labels, probabilities = self._labels, found.logits.sigmoid()
        if (board := self._trackers.board) is not None:
            some = slice(MOST_CURVES)
            parts = (part[:, some] for part in (probabilities, found.target, found.known))
            board.curves("precision_recall", labels.names[some], *parts, step=step)
        places = {index: place for place, index in enumerate(found.indices.tolist())}
        rows = [places[row] for row in self._rows]
        scores, target, known = (part[rows] for part in (probabilities, found.target, found.known))
        tiles = [
            Tile(picture, verdicts(guess, truth, sure, labels))
            for picture, guess, truth, sure in zip(self._pictures, scores, target, known, strict=True)
        ]
        self._trackers.picture("pictures/predictions", sheet(tiles, columns=4), step=step, kind="jpeg")
        if isinstance(self._model, PVLR):
            training = self._model.training
            self._model.eval()
            try:
                with autocast(self._device, self._precision):
                    self._internals(step, self._model, scores)
            finally:
                self._model.train(training)

    def _internals(self, step: int, model: PVLR, probabilities: Float[Tensor, "b c"]) -> None:
        regions = self._regions_of(model)
        attention = self._attention(model.forward_features(regions, maps=True), probabilities)
        if attention is not None:
            self._trackers.picture("pictures/attention", attention, step=step, kind="jpeg")
        if model.config.learn:
            self._relations(step, model)
        if self._trackers.board is None:
            return
        sets = {
            f"fused, step {step}": model.label_vectors(),
            "of the fixed prompts": model.knowledge_vectors,
        }
        self._trackers.board.vectors(self._labels.texts, sets)

    def _regions_of(self, model: PVLR) -> Tensor:
        if self._regions is not None:
            return self._regions
        regions = model.regions(self._inputs.to(self._device))
        tower: Any = model.image
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            self._regions = regions  # A frozen tower's output does not change.
        return regions

    def _attention(self, output: PVLROutput, scores: Float[Tensor, "b c"]) -> Image.Image | None:
        """Draw pictures with the attention between their most probable labels and the patches, averaged over heads."""
        if output.label_maps:
            maps = output.label_maps[-1].mean(dim=1)
        elif output.patch_maps:
            maps = output.patch_maps[-1].mean(dim=1).transpose(1, 2)
        else:
            return None
        texts, top = self._labels.texts, min(TOP, scores.shape[1])
        grid = round(maps.shape[2] ** 0.5)
        tiles = []
        for picture, one, row in list(zip(self._pictures, maps.float().cpu(), scores, strict=True))[:LOOKED_AT]:
            tiles.append(Tile(picture))
            for label in row.topk(top).indices.tolist():
                line = Line(f"{texts[label]} {row[label]:.2f}")
                tiles.append(Tile(overlay(picture, one[label].view(grid, grid)), (line,)))
        return sheet(tiles, columns=top + 1)

    def _relations(self, step: int, model: PVLR) -> None:
        trackers = self._trackers
        parts = model.label_parts()
        maps = {
            "M_ka, of the fixed prompts": parts.knowledge_map,
            "M_ca, of the learnable prompts": parts.context_map,
        }
        dense = {title: one.dense() for title, one in maps.items() if one is not None}
        if len(dense) == 2 and model.fusion.maps and model.fusion.fusion == "gate":
            first, second = dense.values()
            dense["mix of both, as fused"] = fuse_maps(first.expand_as(second), second, model.fusion.mix.float())
        texts, count = model.labels.texts[:MOST], len(model.labels)
        limit = f" (the first {MOST} of {count} labels)" if count > MOST else ""
        for title, values in dense.items():
            mean = values.flatten(0, -3).mean(dim=0)[:MOST, :MOST]
            drawn = heat_map(mean, rows=texts, columns=texts, title=f"{title}: rows look at columns{limit}")
            trackers.picture(f"relations/{title.split(',')[0].replace(' ', '_')}", drawn, step=step)
        if model.fusion.fusion == "gate" and parts.knowledge is not None and parts.context is not None:
            gates = model.fusion.gate_weights(parts.knowledge, parts.context)
            trackers.scalars({"gates/share_of_knowledge": gates.float().mean().item()}, step=step)
            if trackers.board is not None:
                trackers.board.histogram("gates/share_of_knowledge_by_channel", gates, step=step)


def verdicts(
    said: Float[Tensor, " c"], target: Float[Tensor, " c"], known: Tensor, labels: LabelSet, *, threshold: float = 0.5
) -> tuple[Line, ...]:
    """Return lines that compare predictions with targets: right, wrong, missed, and predicted where not known.

    Args:
        said: Probabilities.
        target: 1 for labels that are present.
        known: True where the target is known.
        labels: Names of the columns.
        threshold: Probability from which on a label counts as predicted.

    Example:
        >>> lines = verdicts(
        ...     torch.tensor([0.9, 0.2]), torch.tensor([1.0, 1.0]), torch.tensor([True, True]), LabelSet(("cat", "dog"))
        ... )
        >>> [line.text for line in lines]
        ['cat 0.90', 'missed: dog 0.20']
    """
    lines = []
    for label in said.argsort(descending=True, stable=True).tolist():
        text = f"{labels.texts[label]} {said[label]:.2f}"
        predicted, present = bool(said[label] >= threshold), bool(target[label] > 0)
        if predicted and not known[label]:
            lines.append(Line(f"not known: {text}", "dimgray"))
        elif predicted:
            lines.append(Line(text, "green") if present else Line(f"wrong: {text}", "firebrick"))
        elif present and known[label]:
            lines.append(Line(f"missed: {text}", "chocolate"))
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], Line(f"and {len(lines) - LINES + 1} more", "dimgray")]
    return tuple(lines)


def shown_inputs(train: LabelledImages, transform: TransformConfig, *, seed: int, view: int | None) -> Image.Image:
    """Draw a sheet of the first training inputs, augmented as in training.

    Args:
        train: The training split; its own transform is not used.
        transform: Preprocessing and augmentation of the pictures.
        seed: Seed of the run.
        view: Number of the cached view, of which view 0 is not augmented; None if features are not cached.
    """
    sampler = EpochSampler(len(train), INPUTS, seed, epoch=view or 0, shuffle=True)
    pictures = train.with_transform(ImageTransform(transform, train=view != 0))
    samples = [pictures[draw] for draw in next(iter(sampler))]
    captions = [
        ", ".join(text for text, present in zip(train.labels.texts, sample.target.tolist(), strict=True) if present)
        for sample in samples
    ]
    inputs = torch.stack([sample.image for sample in samples])
    if transform.size < SIDE:  # Captions are as wide as the pictures.
        inputs = functional.interpolate(inputs, SIDE)
    shown = contact_sheet(inputs, mean=transform.mean, std=transform.std, captions=captions)
    picture: Image.Image = F.to_pil_image(shown)
    return picture


def _shortened(value: Any) -> Any:
    """Return a JSON value with at most 40 values of each list, and the number of the others."""
    if isinstance(value, Mapping):
        return {name: _shortened(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        more = len(value) - MOST_LISTED
        return [_shortened(part) for part in value[:MOST_LISTED]] + ([f"and {more:,} more"] if more > 0 else [])
    return value
