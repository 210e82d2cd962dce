"""Comparisons of one model's towers with open_clip's own outputs, and with slow references."""

from collections.abc import Callable
from typing import Any

import torch
from helpers.tower_models import some_images
from helpers.tower_references import patch_reference
from torch import Tensor

from pvlr.core.functional import splice_context
from pvlr.core.protocols import PromptTokens
from pvlr.core.towers import TowerError, Towers
from pvlr.core.towers.image.tower import OpenClipImageTower

SENTENCES = ("a photo of a dog.", "a photo of a cat.", "a photo of a tv monitor seen from afar.")
CONTEXT = "a photo of a"


def relative(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, in parts of the largest value."""
    if got.shape != expected.shape:
        return float("inf")
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def text_errors(model: Any, towers: Towers) -> dict[str, float]:
    """``text``: plain sentences; ``context``: words or vectors in their place, shared by the labels or their own."""
    text, found = towers.text, []
    ids = text.tokenizer(list(SENTENCES), context_length=text.context_length)
    with torch.no_grad():
        plain = relative(text.encode(SENTENCES), model.encode_text(ids))
    prompts = _prompts(text)
    words = text.embed(prompts.ids[0, prompts.start : prompts.start + prompts.length])
    noise = 0.3 * words.std() * torch.randn(len(SENTENCES), *words.shape, generator=torch.Generator().manual_seed(0))
    for context in (words, words.expand(len(SENTENCES), -1, -1), words + noise[0], words + noise):
        context = context.clone().requires_grad_(True)
        got = text.encode_context(context, prompts)
        with torch.no_grad():
            spliced = splice_context(text.embed(prompts.ids), context, prompts.start)
            found.append(relative(got, _encoded(model, prompts.ids, spliced)))
        (gradient,) = torch.autograd.grad(got.square().sum(), context)
        if not (gradient.abs().amax(dim=-1) > 0).all() or any(value.requires_grad for value in text.parameters()):
            found.append(float("inf"))
    return {"text": plain, "context": max(found)}


def _prompts(text: Any) -> PromptTokens:
    """The sentences as tokens, whatever number of them the tokenizer makes of the context."""
    for tokens in range(1, 13):
        try:
            return text.tokenize_prompts(SENTENCES, CONTEXT, tokens)
        except TowerError as err:
            if f"expected {tokens} tokens" not in str(err):
                raise
    raise AssertionError(f"{CONTEXT!r} has more than 12 tokens")


def _encoded(model: Any, ids: Tensor, embeddings: Tensor) -> Tensor:
    """open_clip's whole text tower, with ``embeddings`` in place of what it looks up."""
    tower = getattr(model, "text", model)
    table = tower.transformer.get_input_embeddings() if hasattr(tower, "pooler") else tower.token_embedding
    hook = table.register_forward_hook(lambda *_: embeddings)
    encoded: Tensor = model.encode_text(ids)
    hook.remove()
    return encoded


def image_errors(visual: Any, build: Callable[[str], OpenClipImageTower]) -> dict[str, float]:
    """``pooled``, ``patches`` (of either kind that there is), and both at another ``size``.

    Args:
        visual: open_clip's image tower.
        build: A new tower of the same weights that returns patches of a kind.
    """
    errors: dict[str, list[float]] = {"pooled": [], "patches": [], "size": []}
    for how in ("value", "final"):
        try:
            tower = build(how)
        except TowerError as err:
            if "patch_features" in str(err):  # a kind that this tower does not have
                continue
            raise
        images = some_images(tower)
        with torch.no_grad():
            patches, pooled, *_ = tower(images)
            errors["pooled"].append(relative(pooled, visual(images)))
            errors["patches"].append(relative(patches, patch_reference(tower.visual, images, how)))
            tower.set_image_size(3 * (tower.image_size // tower.grid))
            images = some_images(tower)
            patches, pooled, *_ = tower(images)
            errors["size"].append(relative(pooled, tower.visual(images)))
            errors["size"].append(relative(patches, patch_reference(tower.visual, images, how)))
    return {name: max(found) for name, found in errors.items()}


def training_errors(build: Callable[[str], OpenClipImageTower]) -> dict[str, float]:
    """``blocks``: a gradient to the last two blocks and what follows, and to nothing else; ``checkpointed``: the same.

    Args:
        build: A new tower of the same weights that returns patches of a kind.
    """
    plain, again = build("value"), build("value")
    again.set_gradient_checkpointing(True)
    errors = {"blocks": 0.0, "checkpointed": 0.0}
    for mode in (2, "all"):
        gradients = []
        for tower in (plain, again):
            tower.set_trainable(mode)
            tower.zero_grad()
            gradients.append(_gradients(tower))
        depths = plain.parameter_depths()
        chosen = {name for name, depth in depths.items() if depth >= plain.blocks - 1 or mode == "all"}
        fixed = {name for name, value in plain.named_parameters() if mode == "all" and not value.requires_grad}
        if gradients[0].keys() != chosen - fixed or set(plain.trained_state_dict()) & depths.keys() != chosen - fixed:
            errors["blocks"] = float("inf")
        errors["checkpointed"] = max(errors["checkpointed"], _differences(*gradients))
    # Statistics of batches, which count one that is seen twice but once.
    statistics = (dict(tower.named_buffers()) for tower in (plain, again))
    errors["checkpointed"] = max(errors["checkpointed"], _differences(*statistics))
    return errors


def _differences(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    if some.keys() != others.keys():
        return float("inf")
    pairs = [(some[name], others[name]) for name in some if not torch.equal(some[name], others[name])]
    return max((relative(one, other) for one, other in pairs), default=0.0)


def _gradients(tower: OpenClipImageTower) -> dict[str, Tensor]:
    tower.train()
    patches, pooled, *_ = tower(some_images(tower))
    (patches.square().mean() + pooled.square().mean()).backward()
    tower.eval()
    return {name: value.grad for name, value in tower.named_parameters() if value.grad is not None}


def export_error(tower: OpenClipImageTower) -> dict[str, float]:
    """``export``: a program that takes any number of images."""
    program = torch.export.export(tower, (some_images(tower, 2),), dynamic_shapes=({0: torch.export.Dim("b")},))
    images = some_images(tower, 3)
    with torch.no_grad():
        pairs = [pair for pair in zip(program.module()(images), tower(images), strict=True) if pair != (None, None)]
        return {"export": max(relative(got, expected) for got, expected in pairs)}
