"""`pvlr towers`: what can be given to --tower, quickly, and the weights of the names that are asked for."""

import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from pvlr.cli import towers as module
from pvlr.cli.main import main
from pvlr.core.towers.files import sources

# Of the page docs/towers.md: names whose towers are refused.
REFUSED = {"coca_base", "coca_roberta-ViT-B-32", "coca_ViT-B-32", "coca_ViT-L-14", "vit_relpos_medium_patch16_cls_224"}


def test_names_are_those_of_open_clip_s_that_load() -> None:
    known = {name for name in open_clip.list_models() if not name.startswith("pvlr-test")}  # Of other tests.
    assert set(module._names()) == known - REFUSED


def test_the_table_tells_every_kind_without_importing_torch(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from pvlr.cli.main import main; main(['towers']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, is_heavy = done.stdout.splitlines()
    assert is_heavy == "False"
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for named in (
        "pvlr:scenes-clip",
        "pvlr:photos",
        "FOLDER",
        "hf-hub:OWNER/NAME",
        "ViT-B-16-SigLIP2,",
        "--weights TAG",
    ):
        assert named in text
    assert "coca" not in text


def test_a_word_lists_weights_and_whether_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed() -> dict[str, str]:
        assert main(["towers", "rn50-quickgelu"]) == 0
        name, *lines = capsys.readouterr().out.splitlines()
        assert name == "RN50-quickgelu"
        return dict(line.split(maxsplit=1) for line in lines)

    monkeypatch.setattr(sources, "cached", lambda repository, file, cache: None)
    assert list(listed()) == open_clip.list_pretrained_tags_by_model("RN50-quickgelu")
    assert listed()["cc12m"] == "Hugging Face Hub, timm/resnet50_clip.cc12m"
    monkeypatch.setattr(sources, "cached", lambda repository, file, cache: tmp_path if "cc12m" in repository else None)
    assert {tag for tag, place in listed().items() if place == "on this machine"} == {"cc12m"}


def test_patterns_and_names_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["towers", "ViT-S-*-alt"]) == 0
    assert capsys.readouterr().out == "".join(
        f"{name}\n  none published: --weights FILE\n" for name in ("ViT-S-16-alt", "ViT-S-32-alt")
    )
    assert main(["towers", "ViT-B-61"]) == 2
    assert capsys.readouterr().err.endswith("got ViT-B-61; the nearest name is ViT-B-16\n")
