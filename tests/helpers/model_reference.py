"""The whole model in loops, one image at a time, of the references of its blocks."""

import torch
from torch import Tensor

from helpers import reference
from helpers.model_toys import HEADS
from helpers.strategies import as_lists
from pvlr.core import PVLR
from pvlr.core.protocols import ImageFeatures


def slow(model: PVLR, seen: ImageFeatures) -> tuple[list, list, list]:
    """One image through the method's table, in loops; logits, labels and patches."""
    config, names = model.config, model.base_vectors.tolist()
    trained = model.trained.names
    members = [trained.index(name) if name in trained else -1 for name in model.labels]
    pooled, patches = seen.pooled.tolist(), seen.patches.tolist()
    base = reference.base_scores(
        patches,
        pooled,
        names,
        parts=list(config.parts),
        scale=config.base_scale or 7.0,
        anchors=model.anchors.tolist(),
        members=members,
    )
    learned, labels = None, names
    if config.learn:
        learned, labels, patches = slow_learned(model, members, patches, pooled, seen.source)
    positives = [0.0 if member < 0 else model.known_positives[member].item() for member in members]
    state = as_lists(model.mixture)
    base = base if config.parts else None
    return reference.mixture(state, base, learned, positives, state["shrinkage"]), labels, patches


def slow_learned(model: PVLR, members: list, patches: list, pooled: list, source: Tensor | None) -> tuple:
    config = model.config
    added, own, biases = [], [[] for _ in members], [0.0] * len(members)
    if model.residual is not None:
        added, own, biases = reference.label_residual(as_lists(model.residual), members)
    fused = slow_labels(model, added)
    seen = reference.adapted(as_lists(model.adapter), patches)
    labels, looked, _, _, gathered = reference.dual_modal(
        as_lists(model.attention),
        fused,
        seen,
        heads=HEADS,
        direction=config.direction,
        layers=1,
        feedforward=config.feedforward,
    )
    known = model.base_vectors.tolist() if config.parts else fused
    visual = reference.semantic_pooling(as_lists(model.semantic), seen, known, gathered or None)
    whole = None if source is None else reference.adapted_whole(as_lists(model.adapter), pooled, source.tolist())
    scores = reference.similarity_head(as_lists(model.head), looked, fused, labels, visual, whole)
    if model.residual is not None:
        wide = reference.standardise(pooled if source is None else source.tolist())
        counts = [model.known_positives[member].item() if member >= 0 else 0.0 for member in members]
        scores = [
            (count * score + 10 * reference.dot(wide, row)) / (count + 10)
            for score, row, count in zip(scores, own, counts, strict=True)
        ]
    return [score + bias for score, bias in zip(scores, biases, strict=True)], labels, looked


def slow_labels(model: PVLR, added: list) -> list:
    config, known, soft, maps = model.config, None, None, [None, None]
    if model.knowledge is not None:
        known = model.knowledge_vectors.tolist()
        if config.knowledge != "text_tower":
            state = as_lists(model.knowledge)
            known = [reference.linear(state, "projection", row) for row in known]
        if config.relation == "attention":
            known, maps[0] = reference.label_relation(as_lists(model.knowledge.relation), known, HEADS)
    if model.context is not None:
        words = model.context.context.expand(len(model.labels), -1, -1).tolist()
        prompts = model.text.tokenize_prompts(
            [f"{config.context_words or ' '.join('X' * config.context_tokens)} {t}." for t in model.labels.texts], "", 0
        )
        spliced = reference.splice_context(model.text.embed(prompts.ids).tolist(), words, start=0)
        encoded = model.text.run(torch.tensor(spliced, dtype=torch.float64), prompts.end)
        soft = [reference.normalise(row) for row in encoded.tolist()]
        if config.relation == "attention":
            soft, maps[1] = reference.label_relation(as_lists(model.context.relation), soft, HEADS)
    shared = {"fusion": config.fusion, "heads": HEADS}
    related = None if config.relation == "none" else tuple(maps)
    fused = reference.fusion(as_lists(model.fusion), known, soft, related, **shared)
    return [reference.add(row, more) for row, more in zip(fused, added, strict=True)] if added else fused
