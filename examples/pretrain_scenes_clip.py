"""Pre-training of the tiny CLIP that the quickstart uses, on generated scenes with captions.

    python examples/pretrain_scenes_clip.py --out pvlr/assets/scenes-clip

writes `open_clip_model.safetensors` (float16) and `pretraining.json` (command, seed, data, steps, loss curve) beside
the `open_clip_config.json` already in that folder. It takes minutes on a GPU; on CPU lower `--scenes` and `--steps`.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jsonargparse import auto_cli
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

import pvlr
from pvlr.core.metrics.ranking import average_precision
from pvlr.data.scenes.dataset import SCENE_LABELS, SPLITS, caption, draw_scene, make_scene

CAPTIONS_PER_SCENE = 4
CHUNK = 256


def render_chunk(
    first: int, *, count: int, seed: int, split: str, size: int
) -> tuple[NDArray[np.uint8], list[str], list[list[int]]]:
    """Render a chunk of scenes: pixels `s size size 3`, their captions (several each), the indices of their labels."""
    pixels, captions, present = [], [], []
    for index in range(first, min(first + CHUNK, count)):
        scene = make_scene(seed, split, index)
        image, drawn = draw_scene(scene)
        rng = np.random.default_rng((seed, SPLITS.index(split), index, 1))
        captions += [caption(scene, drawn, rng) for _ in range(CAPTIONS_PER_SCENE)]
        pixels.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)))
        present.append([SCENE_LABELS.index(item.name) for item in drawn if item.name in SCENE_LABELS])
    return np.stack(pixels), captions, present


def render(
    *, count: int, seed: int, split: str, size: int, workers: int
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Render `count` scenes in parallel: pixels, captions, targets."""
    job = partial(render_chunk, count=count, seed=seed, split=split, size=size)
    with ProcessPoolExecutor(workers) as pool:
        pixels, captions, present = zip(*pool.map(job, range(0, count, CHUNK)), strict=True)
    target = torch.zeros(count, len(SCENE_LABELS))
    for row, labels in enumerate(chain.from_iterable(present)):
        target[row, labels] = 1
    return torch.from_numpy(np.concatenate(pixels)), list(chain.from_iterable(captions)), target


@torch.no_grad()
def zero_shot_map(
    model: Any, images: torch.Tensor, target: torch.Tensor, normalise: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """The mean average precision of `a photo of a {label}.` on held-out scenes of the pre-training seed."""
    model.eval()
    device = next(model.parameters()).device
    prompts = open_clip.get_tokenizer("ViT-B-32")([f"a photo of a {text}." for text in SCENE_LABELS.texts]).to(device)
    text = model.encode_text(prompts, normalize=True)
    scores = [
        model.encode_image(normalise(part.to(device)), normalize=True) @ text.T for part in torch.split(images, 500)
    ]
    model.train()
    return float(average_precision(torch.cat(scores).float().cpu(), target).nanmean())


def main(
    out: Path,
    seed: int = 1,
    scenes: int = 150_000,
    steps: int = 8_000,
    batch: int = 1024,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    warmup: int = 500,
    workers: int = 2,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Pre-train a CLIP model on generated scenes with open_clip's loss.

    Args:
        out: Folder that holds `open_clip_config.json`; the results are written there.
        seed: Seed of scenes, weights and order; training and test data of the quickstart use another.
        scenes: Number of different pictures.
        steps: Number of optimiser steps.
        batch: Pictures per step.
        lr: Highest learning rate, reached after `warmup` steps, then falling to zero along a cosine.
        weight_decay: Weight decay of the matrices.
        warmup: Steps of linear warm-up.
        workers: Processes that render.
        device: `cpu` or `cuda`.
    """
    started = time.time()
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{out}", load_weights=False).to(device)
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"][0]
    pixels, captions, _ = render(count=scenes, seed=seed, split="pretrain", size=size, workers=workers)
    held_out, _, held_out_target = render(count=1000, seed=seed, split="val", size=size, workers=workers)
    unique = sorted(set(captions))
    tokens = open_clip.get_tokenizer("ViT-B-32")(unique).to(device)
    row = {text: number for number, text in enumerate(unique)}
    caption_rows = torch.tensor([row[text] for text in captions], device=device).view(scenes, CAPTIONS_PER_SCENE)
    pixels = pixels.to(device)
    print(f"{scenes} scenes, {len(unique)} captions, {time.time() - started:.0f} s", flush=True)

    mean = torch.tensor(settings["mean"], device=device).view(3, 1, 1)
    std = torch.tensor(settings["std"], device=device).view(3, 1, 1)

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return (images.permute(0, 3, 1, 2) / 255 - mean) / std

    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / warmup if step < warmup else 0.5 + 0.5 * np.cos(np.pi * (step - warmup) / (steps - warmup))
        ),
    )
    loss_function = open_clip.ClipLoss()
    generator = torch.Generator(device).manual_seed(seed)
    curve, scores = [], []
    order = torch.empty(0, dtype=torch.long, device=device)
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(scenes, generator=generator, device=device)
        picked, order = order[:batch], order[batch:]
        images = normalise(pixels[picked])
        flip = torch.rand(len(picked), 1, 1, 1, generator=generator, device=device) < 0.5
        images = torch.where(flip, images.flip(-1), images)
        which = torch.randint(CAPTIONS_PER_SCENE, (len(picked),), generator=generator, device=device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            image_vectors, text_vectors, scale = model(images, tokens[caption_rows[picked, which]])
            loss = loss_function(image_vectors, text_vectors, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if step % max(1, steps // 100) == 0 or step == steps - 1:
            curve.append([step, round(loss.item(), 4)])
        if (step + 1) % max(1, steps // 12) == 0:
            scores.append([step + 1, round(zero_shot_map(model, held_out, held_out_target, normalise), 4)])
            line = f"step {step + 1}: loss {curve[-1][1]}, held-out zero-shot mAP {scores[-1][1]}"
            print(f"{line}, {time.time() - started:.0f} s", flush=True)

    state = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, out / "open_clip_model.safetensors")
    record = {
        "command": "python examples/pretrain_scenes_clip.py " + " ".join(sys.argv[1:]),
        "data": {"scenes": scenes, "captions_per_scene": CAPTIONS_PER_SCENE, "seed": seed, "split": "pretrain"},
        "seed": seed,
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "seconds": round(time.time() - started),
        "device": torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU",
        "versions": {"pvlr": pvlr.__version__, "torch": str(torch.__version__), "open_clip": open_clip.__version__},
        "held_out_zero_shot_map": scores,
        "loss_curve": curve,
    }
    (out / "pretraining.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
