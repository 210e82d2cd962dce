import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.voc_tree import write_voc
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from pvlr.data.batch import DataError, collate
from pvlr.data.readers.voc import read_voc
from pvlr.data.sampling import EpochSampler
from pvlr.data.transforms import GREY, ImageTransform, TransformConfig, cutout

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def config(**changes: object) -> TransformConfig:
    return TransformConfig(**{"size": 16, "mean": MEAN, "std": STD} | changes)


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernel(name: str, x: float) -> float:
    """Weight of a pixel at a distance: a triangle, or Keys' cubic of a = -1/2."""
    x = abs(x)
    if name == "bilinear":
        return max(0.0, 1 - x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def shrink(name: str, before: int, after: int) -> np.ndarray:
    """Weights ``after before`` of one direction: the kernel as wide as a new pixel."""
    scale = before / after
    weights = [
        [kernel(name, (old + 0.5 - (new + 0.5) * scale) / max(scale, 1.0)) for old in range(before)]
        for new in range(after)
    ]
    return np.array([[weight / sum(row) for weight in row] for row in weights])


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (17, 16), (12, 90)])
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_evaluation_is_resize_and_normalisation(name: str, width: int, height: int) -> None:
    # Of middling levels: no overshoot is cut off on the way, so that rounding to levels is the only difference.
    levels = np.random.default_rng(0).integers(80, 176, size=(height, width, 3), dtype=np.uint8)
    exact = np.einsum("yh,hwc,xw->yxc", shrink(name, height, 16), levels.astype(float), shrink(name, width, 16))
    found = ImageTransform(config(interpolation=name))(Image.fromarray(levels))
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    shown = (found.permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)) * 255
    assert np.abs(shown - shown.round()).max() < 1e-3, "levels are whole numbers"
    assert np.abs(shown - exact).max() <= 1.01


@settings(max_examples=25, deadline=None)
@given(crop=st.floats(0.05, 0.99), side=st.integers(20, 60), seed=st.integers(0, 2**62))
def test_random_crops_are_large_enough_and_of_allowed_proportions(crop: float, side: int, seed: int) -> None:
    # Red grows to the right and green downwards: the corners tell what was cut out.
    rows, columns = np.mgrid[0:side, 0:side]
    levels = np.stack([columns * 4, rows * 4, 0 * rows], axis=-1).astype(np.uint8)
    plain = config(crop=crop, interpolation="nearest", flip=False, rand_augment=False, cutout=0.0)
    found = ImageTransform(plain, train=True)(Image.fromarray(levels), seeded(seed))
    shown = ((found * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255 / 4).round()
    wide, high = (float(shown[channel].max() - shown[channel].min()) + 1 for channel in (0, 1))
    # Nearest neighbours show all but part of a sixteenth at either end; sides are whole pixels.
    assert (wide + 1) * (1 + 1 / 15) * (high + 1) * (1 + 1 / 15) >= crop * side**2
    assert 0.5 <= (wide + 1) / (high + 1) <= 2 or min(wide, high) < 8
    assert torch.equal(found, ImageTransform(plain, train=True)(Image.fromarray(levels), seeded(seed)))


def test_what_a_crop_is_resized_from_is_not_decoded_too_small() -> None:
    assert ImageTransform(config(), train=True).side == 16
    assert ImageTransform(config(crop=0.25)).side == 16, "evaluation sees whole pictures"
    # A quarter of the area at 3:4 of a square's proportions: sqrt(3/16) of its side.
    assert ImageTransform(config(crop=0.25), train=True).side == 37


def test_training_without_augmentation_is_evaluation() -> None:
    plain = config(flip=False, rand_augment=False, cutout=0.0)
    assert torch.equal(
        ImageTransform(plain, train=True)(noise(1), seeded(3)), ImageTransform(config())(noise(1), seeded(4))
    )


@settings(max_examples=25, deadline=None)
@given(picture=st.integers(0, 2**32), seed=st.integers(0, 2**62), other=st.integers(0, 2**62))
def test_augmentation_is_a_function_of_its_generator(picture: int, seed: int, other: int) -> None:
    transform, image = ImageTransform(config(), train=True), noise(picture)
    torch.default_generator.manual_seed(other)
    state = torch.get_rng_state()
    first = transform(image, seeded(seed))
    assert torch.equal(torch.get_rng_state(), state), "the global generator moved"
    torch.default_generator.manual_seed(other + 1)
    assert torch.equal(transform(image, seeded(seed)), first)


def test_the_global_generator_comes_back_after_a_failure() -> None:
    def broken(image: object) -> object:
        torch.rand(3)
        raise RuntimeError("broken")

    transform = ImageTransform(config(), train=True)
    transform.steps = [broken]
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        transform(noise(0), seeded(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("switch", [{"flip": True}, {"rand_augment": True}, {"cutout": 0.5}, {"crop": 0.3}])
def test_each_augmentation_acts_when_switched_on(switch: dict[str, object]) -> None:
    plain = {"flip": False, "rand_augment": False, "cutout": 0.0}
    transform = ImageTransform(config(**plain | switch), train=True)
    unchanged = ImageTransform(config())(noise(2))
    results = [transform(noise(2), seeded(seed)) for seed in range(20)]
    assert any(not torch.equal(result, unchanged) for result in results)
    if "flip" in switch:
        mirrored = [torch.equal(result, unchanged.flip(-1)) for result in results]
        assert 4 <= sum(mirrored) <= 16
        assert all(m or torch.equal(r, unchanged) for m, r in zip(mirrored, results, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(1, 20), share=st.floats(0, 1), row=st.floats(0, 1), column=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_cutout_paints_one_square_and_nothing_else(
    side: int, share: float, row: float, column: float, seed: int
) -> None:
    pixels = torch.randint(0, 256, (3, side, side), generator=seeded(seed)).to(torch.uint8)
    before = pixels.clone()
    result = cutout(pixels, share=share, center=torch.tensor([row, column]), fill=GREY)
    assert torch.equal(pixels, before)
    # By the definition: painted where row and column both lie within the square.
    width = round(share * side)
    tops = [round(float(torch.tensor(c)) * side - width / 2) for c in (row, column)]
    for i in range(side):
        for j in range(side):
            inside = tops[0] <= i < tops[0] + width and tops[1] <= j < tops[1] + width
            assert torch.equal(
                result[:, i, j], torch.full((3,), GREY, dtype=torch.uint8) if inside else before[:, i, j]
            )


def test_cutout_is_painted_before_normalisation() -> None:
    only_cutout = config(flip=False, rand_augment=False, cutout=1.0)
    result = ImageTransform(only_cutout, train=True)(Image.new("RGB", (20, 20), "white"), seeded(0))
    grey = (GREY / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    painted = torch.isclose(result, grey.view(3, 1, 1), atol=1e-6).all(dim=0)
    assert painted.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "transform.size: expected at least 1 pixel, got 0"),
        ({"mean": (0.5, 0.5)}, "transform.mean: expected three finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "transform.mean: expected three finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "transform.std: expected three finite positive numbers"),
        (
            {"interpolation": "cubic"},
            "transform.interpolation: expected one of bicubic, bilinear, nearest, got 'cubic'",
        ),
        ({"crop": 0.0}, "transform.crop: expected a share above 0, at most 1, got 0.0"),
        ({"crop": float("nan")}, "transform.crop: expected a share above 0, at most 1, got nan"),
        ({"cutout": 1.5}, "transform.cutout: expected a share from 0 to 1, got 1.5"),
        ({"cutout": -0.1}, "transform.cutout: expected a share from 0 to 1, got -0.1"),
        ({"cutout": float("nan")}, "transform.cutout: expected a share from 0 to 1, got nan"),
    ],
)
def test_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        config(**changes)


def test_transforms_pickle_and_print_as_constructor_calls() -> None:
    transform = ImageTransform(config(), train=True)
    for copy in (pickle.loads(pickle.dumps(transform)), eval(repr(transform))):  # noqa: S301, S307
        assert torch.equal(copy(noise(5), seeded(6)), transform(noise(5), seeded(6)))


def test_augmented_batches_are_the_same_with_and_without_workers(tmp_path: Path) -> None:
    write_voc(tmp_path)
    data = read_voc(tmp_path, transform=ImageTransform(config(), train=True), train=True)

    def load(epoch: int, workers: int) -> list[torch.Tensor]:
        sampler = EpochSampler(len(data), 2, seed=1, epoch=epoch, shuffle=True)
        loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        return [batch.image for batch in loader]

    loads = [load(epoch, workers) for epoch, workers in ((0, 0), (0, 2), (1, 0))]
    assert all(torch.equal(x, y) for x, y in zip(loads[0], loads[1], strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(loads[0], loads[2], strict=True))
