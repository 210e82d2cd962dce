"""Reading pictures: decode, resize, augment and collate, beside torchvision's ImageFolder on the same photographs."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import measure, table
from PIL import Image

SIDE, COUNT, BATCH = 224, 32, 16


def photographs(root: Path, source: Path, megapixels: float | None) -> None:
    """Real photographs in a folder per class (one), as they are or enlarged to so many megapixels."""
    (root / "all").mkdir(parents=True)
    for number, path in enumerate(sorted(source.glob("*.jpg"))[:COUNT]):
        with Image.open(path) as picture:
            image = picture.convert("RGB")
        if megapixels is not None:
            factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
            image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        image.save(root / "all" / f"{number:03}.jpg", quality=90)


def read(how: str, folder: str) -> Callable[[], object]:
    """One pass over all pictures in batches, in this process."""
    import torchvision
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    from pvlr.core.labels import LabelSet
    from pvlr.data.batch import collate
    from pvlr.data.dataset import LabelledImages
    from pvlr.data.images import decode_rgb
    from pvlr.data.transforms import ImageTransform, TransformConfig

    torch.set_num_threads(1)  # Per core: a loader has a process for each.
    paths = sorted(Path(folder, "all").glob("*.jpg"))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    config = TransformConfig(size=SIDE, mean=mean, std=std, flip=True, rand_augment=False, cutout=0.0)
    ours = LabelledImages(
        name="mine", labels=LabelSet(("x",)), paths=paths, identifiers=[path.name for path in paths],
        target=torch.zeros(len(paths), 1), transform=ImageTransform(config, train=True),
    )  # fmt: skip
    resize = ImageTransform(config).steps[0]
    standard = v2.Compose([
        v2.Resize((SIDE, SIDE), interpolation=v2.InterpolationMode.BICUBIC), v2.RandomHorizontalFlip(),
        v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std),
    ])  # fmt: skip
    theirs = torchvision.datasets.ImageFolder(folder, transform=standard)

    def work() -> None:
        for start in range(0, len(paths), BATCH):
            rows = range(start, min(start + BATCH, len(paths)))
            if how == "ImageFolder":
                torch.stack([theirs[row][0] for row in rows])
            elif how == "pvlr":
                collate([ours[row] for row in rows])
            elif how == "decode":
                for row in rows:
                    decode_rgb(paths[row], side=SIDE)
            else:
                for row in rows:
                    resize(F.pil_to_tensor(decode_rgb(paths[row], side=SIDE)))

    return work


def report(source: Path) -> Iterator[str]:
    """The table, ratio first; ``source`` holds photographs."""
    rows = []
    for megapixels in (None, 2.0, 8.0):
        with tempfile.TemporaryDirectory() as folder:
            photographs(Path(folder), source, megapixels)
            count = len(list(Path(folder, "all").iterdir()))
            found = {
                how: measure(read, repeat=3, how=how, folder=folder)
                for how in ("ImageFolder", "pvlr", "decode", "resize")
            }
        decoding, resized = (found[how].seconds / found["pvlr"].seconds for how in ("decode", "resize"))
        speed = {how: count / cost.seconds for how, cost in found.items()}
        rows.append(
            (
                "as they are" if megapixels is None else f"{megapixels:g} megapixels",
                f"{speed['pvlr'] / speed['ImageFolder']:.2f}×",
                f"{speed['pvlr']:.0f}",
                f"{speed['ImageFolder']:.0f}",
                f"{decoding:.0%}, {resized - decoding:.0%}, {1 - resized:.0%}",
            )
        )
    header = ("photographs", "faster", "pvlr, images/s", "ImageFolder, images/s", "our time: decoding, resizing, rest")
    yield table(f"Reading photographs at {SIDE}, per core: decode, resize, flip, normalise, collate", header, rows)
