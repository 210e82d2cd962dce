"""`pvlr doubtful`: labels that a run contradicts, as a page, a table or lines, and mistakes in one line."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers.tower_models import write_folder
from helpers.training_toys import LABELS, tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.cli.main import main
from pvlr.core.labels import LabelSet
from pvlr.core.shapes import ShapeError
from pvlr.data.dataset import LabelledImages
from pvlr.inference.doubtful import most_doubtful
from pvlr.inference.recognizer import Recognizer
from pvlr.train import train
from pvlr.train.data_config import VOCData


def doubtful(words: list[str]) -> int:
    return main(["doubtful", *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doubted")
    write_folder(folder / "tower", "vit")
    write_voc(folder / "voc", train=8, test=6)
    options = tiny_options(folder / "voc", folder / "tower", folder / "run", data__keep_labels=0.7)
    assert command(train, options, data=VOCData) == 0
    return folder / "run"


def expected(run: Path) -> set[tuple[str, str, str, str]]:
    """Label, picture, split and given state of every known label whose other state is more probable."""
    recognizer = Recognizer.from_pretrained(run)
    splits = VOCData(root=str(run.parent / "voc"), keep_labels=0.7).splits(0)
    found = set()
    for name, images in (("train", splits.train), ("test", splits.test)):
        for row, path in enumerate(images.paths):
            said = {tag.name: tag.probability for tag in recognizer.tag(path, threshold=0.0)}
            for column, label in enumerate(LABELS):
                present = bool(images.target[row, column])
                if images.known[row, column] and (said[label] > 0.5) != present:
                    found.add((label, images.identifiers[row], name, "present" if present else "absent"))
    return found


def test_a_page_and_a_table_hold_all_that_is_contradicted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "page.html", tmp_path / "doubts.csv"
    assert doubtful([f"--run={finished}", f"--out={page}", f"--csv={table}"]) == 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = expected(finished)
    assert wanted, "of a model of two epochs something is wrong"
    assert {(row["label"], row["file"], row["split"], row["given"]) for row in rows} == wanted
    for label in LABELS:
        of_label = [float(row["probability_of_other"]) for row in rows if row["label"] == label]
        assert of_label == sorted(of_label, reverse=True)
        assert all(value > 0.5 for value in of_label)
    text = page.read_text()
    pictures = {(row["split"], row["file"]) for row in rows}
    assert text.count("<article") == len(pictures)
    assert len(re.findall(r"<span>[^<]+: given as (?:present|absent)</span>", text)) == len(rows)
    assert text.count("data:image/webp;base64,UklGR") == len(pictures)
    said = f"{len(rows)} given labels of {len(pictures)} pictures are contradicted"
    assert capsys.readouterr().out == f"{said}\n"
    assert said in text


def test_without_files_they_are_lines_and_as_many_as_wanted(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doubtful([f"--run={finished}", "--top=1"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    labels = [line.split(": ")[0] for line in lines]
    assert sorted(set(labels)) == sorted(labels) == sorted({label for label, *_ in expected(finished)})
    assert last.startswith(f"{len(lines)} given labels of ")


def test_other_data_are_looked_at_with_their_labels(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = finished.parent / "voc" / "VOCdevkit" / "VOC2007" / "JPEGImages"
    (tmp_path / "table.csv").write_text("file,labels,split\n000000.jpg,zebra,train\n000001.jpg,red,test\n")
    data = {"images": str(pictures), "table": str(tmp_path / "table.csv"), "labels": ["zebra", "red"], "workers": 0}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"data": data}))
    assert doubtful([f"--run={finished}", f"--data={tmp_path / 'other.yaml'}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"given labels of \d pictures are contradicted\n$", said)
    assert {line.split(": ")[0] for line in said.splitlines()[:-1]} <= {"zebra", "red"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run=nowhere"], "nowhere/config.yaml: expected a configuration with a section 'data'"),
        (["--run=nowhere", "--top=0"], "--top: expected a whole number of at least 1, got 0"),
        (["--run=nowhere", "--out=no/x.html"], "--out: expected a file in a folder that is there, got no/x.html"),
        (["--run=nowhere", "--out=x", "--csv=x"], "--csv: expected another file than --out, got x"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doubtful(options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def made(target: list[list[float]], known: list[list[bool]] | None = None) -> LabelledImages:
    names = [f"{row}.jpg" for row in range(len(target))]
    return LabelledImages(
        name="mine", labels=LabelSet(("a", "b")), paths=[Path(name) for name in names], identifiers=names,
        target=torch.tensor(target), known=None if known is None else torch.tensor(known),
    )  # fmt: skip


def test_unknown_labels_are_not_contradicted_and_the_top_is_that_of_all_splits() -> None:
    splits = {"train": made([[1, 0.0], [0, 0]], [[True, False], [True, True]]), "test": made([[1.0, 0.0]])}
    probabilities = {"train": torch.tensor([[0.25, 0.9], [0.75, 0.5]]), "test": torch.tensor([[0.125, 0.625]])}
    found = most_doubtful(splits, probabilities, top=2)
    assert [(doubt.label, doubt.split, doubt.row, doubt.given) for doubt in found] == [
        ("a", "test", 0, "present"),
        ("a", "train", 0, "present"),
        ("b", "test", 0, "absent"),
    ]
    assert [doubt.probability for doubt in found] == [0.875, 0.75, 0.625]


def test_probabilities_of_other_pictures_are_refused() -> None:
    with pytest.raises(ShapeError, match="probabilities"):
        most_doubtful({"train": made([[1.0, 0.0]])}, {"train": torch.zeros(2, 2)})
