"""Tags without training, and runs whose towers lie elsewhere now: the commands as a person uses them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from helpers.extras import require_extra
from helpers.tagging_toys import NAMES, make_recognizer, write_pictures
from helpers.tower_models import CONFIGS, write_folder

from pvlr.cli.export import export
from pvlr.cli.main import main
from pvlr.core import PretrainedError, TowerError, TowerSpec, load_towers
from pvlr.core.towers import spec_of
from pvlr.inference.recognizer import Recognizer
from pvlr.train.config import ConfigError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def predict() -> Callable[[list[str]], int]:
    return lambda words: main(["tag", *words])


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return write_pictures(tmp_path / "pictures", 3)


@pytest.fixture
def sigmoid(tmp_path: Path) -> Path:
    """A folder of towers with a scale and a bias that make probabilities."""
    write_folder(tmp_path / "sigmoid", "siglip")
    return tmp_path / "sigmoid"


# --------------------------------------------------------------------------------------- tags without training


def test_a_tower_without_a_bias_ranks_and_says_so(
    predict: Any, pictures: list[str], capsys: Any, tmp_path: Path
) -> None:
    out = tmp_path / "tags.jsonl"
    words = ["--tower", "pvlr:scenes-clip", "--labels", "red circle, star, blue square, cat, dog, cow"]
    assert predict([*words, *pictures]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "pvlr:scenes-clip: no scale and bias make probabilities of its scores; the numbers are cosine similarities, "
        "which rank the labels\n"
    )
    assert all(line.count(",") == 4 for line in said.out.splitlines())  # The five nearest.
    assert predict([*words, *pictures, "--top", "2", "--out", str(out), "--html", str(tmp_path / "page.html")]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all([set(tag) for tag in row["tags"]] == [{"name", "similarity"}] * 2 for row in rows)
    page = (tmp_path / "page.html").read_text()
    best = rows[0]["tags"][0]
    assert f"<span>{best['name']}</span><span>{best['similarity']:.2f}</span>" in page
    assert "data-map=" in page
    assert predict([*words, *pictures, "--threshold", "-0.5"]) == 0
    assert predict([*words, *pictures, "--out", str(tmp_path / "tags.csv")]) == 0
    assert (tmp_path / "tags.csv").read_text().splitlines()[0] == "file,labels,similarities"


def test_a_tower_with_a_bias_gives_probabilities(
    predict: Any, pictures: list[str], sigmoid: Path, capsys: Any, tmp_path: Path
) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "tags.jsonl"
    labels.write_text("cat\nsalt, pepper\n")
    words = ["--tower", str(sigmoid), "--labels", f"@{labels}", *pictures]
    assert predict([*words, "--top", "1", "--out", str(out)]) == 0
    assert capsys.readouterr().err == ""
    recognizer = Recognizer.from_towers(load_towers(f"local-dir:{sigmoid}"), ["cat", "salt, pepper"])
    for line, path in zip(out.read_text().splitlines(), pictures, strict=True):
        (tag,) = json.loads(line)["tags"]
        wanted = recognizer.tag(path, threshold=0.0)[0]
        assert tag == {"name": wanted.name, "probability": pytest.approx(wanted.probability, abs=1e-4)}
    assert predict([*words, "--threshold", "-0.5"]) == 2
    assert capsys.readouterr().err == "error: --threshold: expected a probability in [0, 1], got -0.5\n"


def test_without_labels_it_is_coco_s(pictures: list[str]) -> None:
    recognizer = Recognizer.open(tower="pvlr:scenes-clip")
    assert (len(recognizer.labels), recognizer.labels.names[0]) == (80, "person")
    assert len(Recognizer.open(tower="pvlr:scenes-clip", labels="voc").labels) == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run: expected a trained model, or tower for one that tags without training, got neither"),
        (["--tower", "pvlr:none"], "name: no tower called 'pvlr:none' comes with pvlr"),
        (["--tower", "ViT-B-16"], "weights: expected one of those of 'ViT-B-16' (openai, laion400m_e31,"),
        (["--tower", "ViT-B-61"], "name: no tower is called 'ViT-B-61'; the nearest are"),
        (["--tower", "pvlr:scenes-clip", "--labels", "cat,,dog"], "labels: expected names with commas between, @FILE"),
        (["--run", "x", "--weights", "y"], "weights: expected none with run, whose own are known"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, predict: Any, pictures: list[str], capsys: Any) -> None:
    assert predict([*words, *pictures]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_a_name_with_one_published_tag_needs_no_other() -> None:
    assert spec_of("ViT-B-16-SigLIP2") == TowerSpec(name="ViT-B-16-SigLIP2", weights="webli")
    assert spec_of("ViT-B-16", "openai").weights == "openai"
    with pytest.raises(TowerError, match=r"^weights: expected a file or 'random', got none: none are published$"):
        spec_of(next(name for name in open_clip.list_models() if not open_clip.list_pretrained_tags_by_model(name)))


def test_an_evaluation_needs_no_run(sigmoid: Path, tmp_path: Path, capsys: Any) -> None:
    write_pictures(tmp_path / "data", 6)
    rows = "".join(f"{number:03d}.png,{'cat' if number % 2 else 'dog'}\n" for number in range(6))
    (tmp_path / "labels.csv").write_text(f"file,labels\n{rows}")
    config = tmp_path / "data.yaml"
    config.write_text(
        f"data: {{images: {tmp_path / 'data'}, table: {tmp_path / 'labels.csv'}, test_share: 0.5, workers: 0}}\n"
    )
    told = tmp_path / "report.json"
    words = ["--tower", str(sigmoid), "--data", str(config), "--resamples", "0", "--json", str(told)]
    assert main(["evaluate", *words]) == 0
    assert 0 < json.loads(told.read_text())["mAP"] <= 1
    assert main(["evaluate", "--tower", str(sigmoid)]) == 2
    assert "expected --run, --scores, or --tower with --data" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
def test_a_program_needs_no_run(sigmoid: Path, tmp_path: Path) -> None:
    export(out=str(tmp_path / "out"), tower=str(sigmoid), kind="torch", names="cat, dog")
    told = json.loads((tmp_path / "out" / "program.json").read_text())
    assert told["labels"] == ["cat", "dog"]
    assert told["largest_difference"] < 1e-4


def test_ray_needs_no_run(pictures: list[str], tmp_path: Path) -> None:
    require_extra("ray", "pyarrow", "ray")
    from pyarrow import parquet

    words = ["--tower", "pvlr:scenes-clip", "--labels", "a, b", "--pictures", str(tmp_path / "pictures")]
    command = [sys.executable, str(EXAMPLES / "tag_ray.py"), *words, "--out", str(tmp_path / "ranks"), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "ranks").glob("*.parquet")
    table = parquet.read_table(found)
    assert table.column_names == ["name", "labels", "similarities", "error"]
    assert [sorted(labels) for labels in table["labels"].to_pylist()] == [["a", "b"]] * 3


# ----------------------------------------------------------------------------------------- runs that have moved


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A saved model, and its tower in another place than it was."""
    make_recognizer(tmp_path / "old").save_pretrained(tmp_path / "model")
    shutil.move(tmp_path / "old", tmp_path / "new")
    return tmp_path


def test_a_tower_that_lies_elsewhere_is_named(moved: Path, predict: Any, pictures: list[str], capsys: Any) -> None:
    model, place = str(moved / "model"), str(moved / "new")
    assert predict(["--run", model, *pictures]) == 2
    assert "--tower" in capsys.readouterr().err
    assert predict(["--run", model, "--tower", place, *pictures, "--top", "1"]) == 0
    assert Recognizer.open(model, place, labels="a, b").labels.names == ("a", "b")
    write_folder(moved / "other", "vit", seed=7)
    with pytest.raises(PretrainedError, match="the model was trained on other weights of the tower 'local-dir:"):
        Recognizer.open(model, str(moved / "other"))
    with pytest.raises(TowerError, match=r"expected the folder that 'local-dir:.*' lies in now, got the file"):
        Recognizer.open(model, f"{place}/open_clip_model.safetensors")
    again = moved / "again"
    Recognizer.open(model, place).save_pretrained(again)
    assert Recognizer.from_pretrained(again).labels.names == NAMES


def test_a_relative_path_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    make_recognizer(Path("tower")).save_pretrained("model")
    monkeypatch.chdir(tmp_path)
    assert Recognizer.from_pretrained("project/model").labels.names == NAMES


def test_weights_in_a_file_that_has_moved(tmp_path: Path, pictures: list[str]) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "pvlr-test-moved.json").write_text(json.dumps(CONFIGS["vit"]))
    open_clip.add_model_config(tmp_path / "configs")
    write_folder(tmp_path / "tower", "vit")
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    shutil.copy(tmp_path / "tower" / "open_clip_model.safetensors", old)
    ranking = Recognizer.from_towers(load_towers("pvlr-test-moved", weights=str(old)), ["cat"])
    ranking.save_pretrained(tmp_path / "model")
    shutil.move(old, new)
    recognizer = Recognizer.open(str(tmp_path / "model"), str(new))
    assert len(recognizer.tag(pictures[0])) == 1
    with pytest.raises(ConfigError, match=r"^run: expected a trained model, or tower"):
        Recognizer.open()
