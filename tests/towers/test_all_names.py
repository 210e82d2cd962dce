"""One name of each kind of tower, in small, beside open_clip's own outputs; ``all_names.py`` does it for every name."""

import re
from pathlib import Path

import all_names
import open_clip
import pytest

from pvlr.core.towers.image import timm_family

# A name for each image tower that is computed in a way of its own, and each text encoder.
SAMPLE = (
    "ViT-B-32-quickgelu",
    "ViT-L-14-CLIPA",
    "RN50",
    "convnext_tiny",
    "convnext_large_d",
    "MobileCLIP-S1",
    "MobileCLIP2-S3",
    "MobileCLIP2-B",
    "MobileCLIP2-L-14",
    "EVA01-g-14",
    "EVA02-B-16",
    "EVA02-E-14",
    "PE-Core-B-16",
    "ViT-B-32-SigLIP2-256",
    "ViTamin-S",
    "ViTamin-XL-384",
    "vit_medium_patch16_gap_256",
    "swin_base_patch4_window7_224",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
    "roberta-ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
)
COCA = "is a CoCa model, which is not supported: both of its halves are pooled by tokens of their own"
REFUSED = {
    "coca_base": f"name: 'coca_base' {COCA}",
    "coca_roberta-ViT-B-32": f"name: 'coca_roberta-ViT-B-32' {COCA}",
    "vit_relpos_medium_patch16_cls_224": "image tower: expected one of timm's ConvNeXt, EfficientNet, FastVit, "
    "SwinTransformer, VisionTransformer, Eva, got timm's VisionTransformerRelPos",
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", SAMPLE)
def test_towers_are_open_clips_own(name):
    outcome = all_names.check(name)
    assert outcome.refusal == ""
    assert outcome.errors.keys() == {*all_names.COLUMNS, "blocks"}
    assert outcome.wrong == [], outcome.errors


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_with_the_reason(name):
    assert all_names.check(name).refusal == REFUSED[name]


@pytest.mark.usefixtures("unchecked")
def test_a_wrong_patch_is_found(monkeypatch):
    right = timm_family._pool_map
    monkeypatch.setattr(timm_family, "_pool_map", lambda visual, x: right(visual, x + 1e-3 * x.roll(1, dims=0)))
    monkeypatch.setattr(all_names, "_check_config", all_names._check_config.__wrapped__)  # nothing remembered
    assert set(all_names.check("convnext_small").wrong) >= {"patches", "size"}


@pytest.mark.usefixtures("unchecked")
def test_the_table_has_a_row_for_each_kind_and_a_name_in_one_row(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{all_names.BEGIN}\nold\n{all_names.END}\n\nAfter\n")
    names = ("RN50", "ViT-B-32-quickgelu", "coca_base")
    assert all_names.main(names, page) == 0
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith(f"{all_names.END}\n\nAfter\n")
    assert "old" not in text
    assert f"open_clip {open_clip.__version__}: 2 of 3 names load" in text
    for row in (
        "| ModifiedResNet | transformer, prefix | 1 |",
        "| VisionTransformer, class token | `ViT-B-32-quickgelu` |",
        f"| `coca_base` | name: 'coca_base' {COCA} |",
    ):
        assert row in text
    assert capsys.readouterr().out.strip() in text


def test_the_page_has_every_name_once():
    page = (Path(__file__).resolve().parents[2] / "docs" / "towers.md").read_text(encoding="utf-8")
    written = page.partition(all_names.BEGIN)[2]
    if f"open_clip {open_clip.__version__}:" not in written:
        pytest.skip("written with another version of open_clip")
    names = re.findall(r"`([^`]+)`", written)
    # Names that other tests add to the registry begin with pvlr.
    assert sorted(names) == sorted(name for name in open_clip.list_models() if not name.startswith("pvlr-"))
