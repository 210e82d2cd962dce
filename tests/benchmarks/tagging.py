"""Tagging a folder, from file to tags, beside the bare tower and other ways to do it, all in one run."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import measure, table
from PIL import Image
from prompt_path import CONTEXT, names
from text_side import VIT, all_positions

SIZE, LABELS = (1600, 1200), 80
# Ours and DualCoOp's are the defaults; the others are fastest with few.
BATCH, OUR_BATCH, THEIR_BATCH = 4, 32, 32
PHOTOS = {"name": "pvlr:photos"}
# What is done, the tower, and how; the first row of a tower is the unit.
ROWS: dict[str, tuple[dict[str, str], str]] = {
    "pvlr, pvlr:photos": (PHOTOS, "pvlr"),
    "its bare tower, on tensors": (PHOTOS, "tower"),
    "pvlr, ViT-B/16 at 224": (VIT, "pvlr"),
    "the bare ViT-B/16, on tensors": (VIT, "tower"),
    "transformers' zero-shot pipeline, ViT-B/16": (VIT, "pipeline"),
    "DualCoOp's evaluation, ViT-B/16": (VIT, "dualcoop"),
}


def write_photographs(folder: Path, count: int, source: Path | None) -> None:
    """Write JPEG files of 2 megapixels: photographs of a folder, enlarged, or generated scenes."""
    from pvlr.data.scenes.dataset import draw_scene, make_scene

    files = [] if source is None else sorted(source.rglob("*.jpg"))
    for number in range(count):
        if files:
            with Image.open(files[number % len(files)]) as picture:
                image = picture.convert("RGB")
        else:
            image, _ = draw_scene(make_scene(0, "test", number))
        image.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)


def clip_of_transformers() -> tuple[Any, Any, Any]:
    """Return transformers' CLIP ViT-B/16 with random weights, its tokenizer and its image processor."""
    import open_clip
    import transformers

    text = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
    sight = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    config = transformers.CLIPConfig(text_config=text, vision_config={**sight, "patch_size": 16, "image_size": 224})
    own = open_clip.SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(piece, piece): number for piece, number in own.encoder.items()}
    merges = [pair for pair, _ in sorted(own.bpe_ranks.items(), key=lambda item: item[1])]
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    return transformers.CLIPModel(config).eval(), tokenizer, transformers.CLIPImageProcessor()


def pipeline(paths: list[str], labels: list[str]) -> Callable[[], object]:
    """The pipeline as its documentation has it: file names and labels."""
    import transformers

    model, tokenizer, processor = clip_of_transformers()
    tag = transformers.pipeline(
        "zero-shot-image-classification", model=model, tokenizer=tokenizer, image_processor=processor, device="cpu"
    )
    return lambda: tag(paths, candidate_labels=labels, batch_size=BATCH)


def dualcoop(towers: Any, paths: list[str], labels: list[str]) -> Callable[[], object]:
    """Evaluation as in DualCoOp's published code: both prompts of every label are encoded for each batch."""
    from torchvision.transforms import v2

    text = towers.text
    prompts = text.tokenize_prompts([f"{name}." for name in labels], None, CONTEXT)
    contexts = [0.02 * torch.randn(CONTEXT, text.width) for _ in ("positive", "negative")]
    transform = v2.Compose([
        v2.Resize((224, 224)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
    ])  # fmt: skip

    def work() -> None:
        with torch.no_grad():
            for start in range(0, len(paths), THEIR_BATCH):
                images = torch.stack([
                    transform(Image.open(path).convert("RGB")) for path in paths[start : start + THEIR_BATCH]
                ])  # fmt: skip
                vectors = torch.stack([all_positions(text, context, prompts) for context in contexts])
                maps = torch.einsum("kcd,bnd->kbcn", vectors, towers.image(images).patches)
                ((maps[0] * maps[1].softmax(dim=-1)).sum(dim=-1) > 0).tolist()

    return work


def tagging(how: str, tower: dict[str, str], folder: str, labels: int) -> Callable[[], object]:
    """One pass over the pictures of a folder."""
    from pvlr.core.labels import LabelSet
    from pvlr.core.towers import build_towers
    from pvlr.core.towers.spec import TowerSpec
    from pvlr.inference.recognizer import Recognizer
    from pvlr.inference.tagging import tag_files

    paths, texts = sorted(map(str, Path(folder).glob("*.jpg"))), names(labels)
    if how == "pipeline":
        return pipeline(paths, texts)
    towers = build_towers(TowerSpec(**tower))
    if how == "dualcoop":
        return dualcoop(towers, paths, texts)
    if how == "pvlr":
        recognizer = Recognizer.from_towers(towers, LabelSet(tuple(texts)))
        return lambda: list(tag_files(recognizer, paths, batch_size=OUR_BATCH, workers=2))
    images = torch.randn(BATCH, 3, towers.image.image_size, towers.image.image_size)

    def work() -> None:
        with torch.no_grad():
            for _ in range(0, len(paths), BATCH):
                towers.image(images)

    return work


def report(small: bool = False, photographs: Path | None = None) -> Iterator[str]:
    """The table, ratio first; ``photographs``: a folder of JPEG files that are enlarged."""
    count, labels, repeat = (4, 4, 1) if small else (32, LABELS, 2)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), count, photographs)
        for title, (tower, how) in ROWS.items():
            found[title] = measure(tagging, repeat=repeat, how=how, tower=tower, folder=folder, labels=labels)
    units = {str(tower): found[title] for title, (tower, how) in ROWS.items() if how == "pvlr"}
    rows = [
        (title, f"{cost.seconds / units[str(ROWS[title][0])].seconds:.2f}×", f"{count / cost.seconds:.1f}",
         f"{cost.megabytes:,.0f}")
        for title, cost in found.items()
    ]  # fmt: skip
    header = ("way", "time beside pvlr", "pictures/s", "MiB")
    what = "scenes" if photographs is None else "photographs"
    yield table(
        f"From file to tags: {count} {what} of {SIZE[0]} × {SIZE[1]}, {labels} labels, float32, batches of {BATCH} "
        f"(pvlr's {OUR_BATCH}, DualCoOp's {THEIR_BATCH}), CPU",
        header,
        rows,
    )
