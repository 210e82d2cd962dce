"""Files for Label Studio and FiftyOne: their structure, whole or absent, whatever the names."""

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pvlr.core import LabelSet
from pvlr.inference.interchange import FiftyOneFile, LabelStudioFile, labelling_config
from pvlr.inference.tags import Tag

LABELS = LabelSet(("cat", 'a "dog" & <cow>', "sea"))
CAT, DOG = Tag("cat", 0.912345, None), Tag(LABELS.names[1], 0.75, None)


def test_a_task_has_its_picture_and_one_prediction_with_all_choices(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    with LabelStudioFile(path, LABELS, model="runs/mine") as file:
        file.add("b/a 1.jpg", [CAT, DOG])
        file.add("none.jpg", [])
    first, second = json.loads(path.read_text())
    assert first == {
        "data": {"image": "b/a 1.jpg"},
        "predictions": [
            {
                "model_version": "runs/mine",
                "score": 0.75,
                "result": [
                    {
                        "from_name": "labels",
                        "to_name": "image",
                        "type": "choices",
                        "value": {"choices": ["cat", LABELS.names[1]]},
                    }
                ],
            }
        ],
        "meta": {"probabilities": {"cat": 0.9123, LABELS.names[1]: 0.75}},
    }
    assert second["predictions"] == [{"model_version": "runs/mine", "result": []}]


def test_the_configuration_beside_it_names_what_the_predictions_name(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    with LabelStudioFile(path, LABELS, model="mine") as file:
        file.add("a.jpg", [CAT])
    view = ET.fromstring((tmp_path / "tasks.json.config.xml").read_text())
    (result,) = json.loads(path.read_text())[0]["predictions"][0]["result"]
    image, choices = view.find("Image"), view.find("Choices")
    assert image is not None
    assert choices is not None
    assert (image.get("name"), image.get("value")) == (result["to_name"], "$image")
    assert (choices.get("name"), choices.get("toName"), choices.get("choice")) == (
        result["from_name"],
        "image",
        "multiple",
    )
    assert [choice.get("value") for choice in choices] == list(LABELS)
    assert labelling_config(LABELS) == (tmp_path / "tasks.json.config.xml").read_text()


def test_behind_a_prefix_a_path_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    with LabelStudioFile(path, LABELS, model="mine", prefix="/data/local-files/?d=") as file:
        file.add("b/a 1&2.jpg", [])
        file.add(os.fsdecode(b"\xff.jpg"), [])
    images = [task["data"]["image"] for task in json.loads(path.read_text())]
    assert images == ["/data/local-files/?d=b/a%201%262.jpg", "/data/local-files/?d=%FF.jpg"]


def test_fiftyone_has_a_list_of_labels_by_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with FiftyOneFile(Path("labels.json"), LABELS) as file:
        file.add("b/../a.jpg", [CAT, DOG])
        file.add("/none.jpg", [])
    assert json.loads(Path("labels.json").read_text()) == {
        "classes": list(LABELS),
        "labels": {
            f"{tmp_path}/a.jpg": [
                {"label": "cat", "confidence": 0.9123},
                {"label": LABELS.names[1], "confidence": 0.75},
            ],
            "/none.jpg": [],
        },
    }


@pytest.mark.parametrize("empty", [LabelStudioFile, FiftyOneFile])
def test_no_picture_is_a_document_too_and_an_error_leaves_the_old_one(empty: type, tmp_path: Path) -> None:
    path, more = tmp_path / "x.json", {"model": "mine"} if empty is LabelStudioFile else {}
    with empty(path, LABELS, **more):
        pass
    whole = path.read_bytes()
    assert json.loads(whole) in ([], {"classes": list(LABELS), "labels": {}})

    def interrupted() -> None:
        with empty(path, LABELS, **more) as file:
            file.add("a.jpg", [CAT])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == whole
