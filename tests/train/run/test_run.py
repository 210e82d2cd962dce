"""Whole runs from the command line: what they leave behind, stopping and going on, refusals in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tower_models import CONFIGS, write_folder
from helpers.training_toys import LABELS, rows_of, tiny_options, write_voc
from PIL import Image

from pvlr.cli.command import command
from pvlr.core.metrics.report import multilabel_report
from pvlr.core.towers import load_towers
from pvlr.data.batch import DataError
from pvlr.data.readers.voc import read_voc
from pvlr.inference.saving import PretrainedError, _digest_of
from pvlr.train import Recognizer, train
from pvlr.train.checkpoint import Checkpoints
from pvlr.train.data_config import VOCData

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPT = REPOSITORY / "examples" / "train_voc.py"


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, train=24, test=6)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tower: Path, voc: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert command(train, tiny_options(voc, tower, folder, run__baselines="true"), data=VOCData) == 0
    return folder


def test_a_run_leaves_its_configuration_metrics_record_and_model(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["steps"] == 12
    assert record["config"]["loop"]["epochs"] == 2
    assert record["versions"]["torch"] == torch.__version__
    assert record["from_step"] == 0
    assert record["seconds"] > 0
    assert [line.split(": ")[1].split(", ")[0] for line in record["data"]] == ["24 images", "6 images"]
    assert {"PVLR", "linear probe", "zero-shot"} == set(record["results"])
    assert all(0 <= found["mAP"] <= 1 for found in record["results"].values())
    assert [row["step"] for row in rows_of(finished) if row["kind"] == "train"] == list(range(1, 13))
    assert rows_of(finished)[-1]["mAP"] == record["results"]["PVLR"]["mAP"]
    assert len(Checkpoints(finished / "checkpoints").paths()) == 2


def test_the_written_configuration_starts_the_same_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(
        train, ["--config", str(finished / "config.yaml"), "--run.folder", str(tmp_path / "again")], data=VOCData
    )
    assert code == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    said = capsys.readouterr().out
    assert "VOC2007 trainval: 24 images, 3 labels" in said
    assert "zero-shot" in said
    assert f" tag --run {tmp_path / 'again'} PICTURE.jpg" in said


def test_a_finished_run_goes_on_with_more_epochs_and_only_with_those(
    tower: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(lr: float = 0.1, **more: object) -> int:
        return command(train, tiny_options(voc, tower, tmp_path / "run", optimizer__lr=lr, **more), data=VOCData)

    assert run(loop__epochs=1) == 0
    assert run(loop__epochs=2, run__resume="require") == 0
    said = capsys.readouterr().out
    assert "going on from step 6" in said
    assert "loop.epochs: 1, now 2: from here on the learning rates are those of a run of 2 epochs" in said
    before = rows_of(tmp_path / "run")
    assert run(lr=0.5, loop__seed=3) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "loop.seed: 0, now 3; optimizer.lr: 0.1, now 0.5" in error
    assert run(run__resume="never") == 2
    assert "holds a run already and run.resume is 'never'" in capsys.readouterr().err
    assert run(loop__epochs=1) == 2
    assert "loop.epochs: the saved run is at step 12, past the 6 steps of 1 epochs" in capsys.readouterr().err
    assert rows_of(tmp_path / "run") == before


def test_the_number_of_epochs_follows_from_the_pictures_if_it_may(
    tower: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny_options(voc, tower, tmp_path / "run", loop__epochs="auto", loop__batch_size=24)
    assert command(train, [*options, "--loop.evaluate_every=0", "--loop.checkpoint_every=20"], data=VOCData) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["steps"], record["config"]["loop"]["epochs"]) == (40, "auto")
    capsys.readouterr()
    # The same number, said otherwise, is the same run; another one is told.
    again = [option for option in options if not option.startswith("--loop.epochs")]
    assert command(train, [*again, "--loop.epochs=40", "--loop.evaluate_every=0"], data=VOCData) == 0
    assert "loop.epochs" not in capsys.readouterr().out
    assert command(train, [*again, "--loop.epochs=41", "--loop.evaluate_every=0"], data=VOCData) == 0
    assert "loop.epochs: 40, now 41: from here on" in capsys.readouterr().out
    assert command(train, [*again, "--loop.epochs=often"], data=VOCData) == 2
    assert "loop.epochs" in capsys.readouterr().err


def test_other_data_and_other_towers_are_refused_on_resume(
    tower: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(train, tiny_options(voc, tower, tmp_path / "run", loop__epochs=1), data=VOCData) == 0
    write_voc(tmp_path / "other", train=23)
    assert command(train, tiny_options(tmp_path / "other", tower, tmp_path / "run"), data=VOCData) == 2
    assert (
        "run.folder: the run in it was started on other pictures or labels; choose another folder"
        in capsys.readouterr().err
    )
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "VOCdevkit").symlink_to(voc / "VOCdevkit")
    assert command(train, tiny_options(moved, tower, tmp_path / "run"), data=VOCData) == 0
    write_voc(tmp_path / "other_test", train=24, test=5)
    assert command(train, tiny_options(tmp_path / "other_test", tower, tmp_path / "run"), data=VOCData) == 2
    assert (
        "run.folder: the run in it was started on other pictures or labels; choose another folder"
        in capsys.readouterr().err
    )
    saved = (tower / "open_clip_model.safetensors").read_bytes()
    try:
        write_folder(tower, "vit", seed=5)
        assert command(train, tiny_options(voc, tower, tmp_path / "run"), data=VOCData) == 2
        assert "tower.name: the run was started on other weights of this tower" in capsys.readouterr().err
        with pytest.raises(PretrainedError, match="the model was trained on other weights of the tower"):
            Recognizer.from_pretrained(tmp_path / "run")
    finally:
        (tower / "open_clip_model.safetensors").write_bytes(saved)


@pytest.mark.parametrize("train_what", ["all", "1"])
def test_trained_towers_are_saved_and_loaded(tower: Path, voc: Path, tmp_path: Path, train_what: str) -> None:
    folder = tmp_path / "run"
    options = tiny_options(voc, tower, folder, tower__train=train_what, loop__epochs=1, optimizer__lr=0.01)
    assert (
        command(
            train, [*options, "--run.baselines=true", "--loop.precision=bf16", "--optimizer.kind=sgd"], data=VOCData
        )
        == 0
    )
    run = Recognizer.from_pretrained(folder)
    saved = Checkpoints(folder / "checkpoints").load()
    assert saved is not None
    averaged, before = saved[1]["average"]["weights"], load_towers(f"local-dir:{tower}").image.state_dict()
    moved = {name: p for name, p in run.model.named_parameters() if name.startswith("image.") and p.requires_grad}
    assert moved
    for name, value in moved.items():
        assert torch.equal(value, averaged[name]), name
    assert any(not torch.equal(value, before[name.removeprefix("image.")]) for name, value in moved.items())
    assert len(run.tag(voc / "VOCdevkit/VOC2007/JPEGImages/000000.jpg", threshold=0.0)) == 3


@pytest.mark.parametrize("share", ["0.5", "single_positive"])
def test_a_model_knows_how_many_positives_training_knew(
    share: str, tower: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(**more: object) -> None:
        options = {"data__keep_labels": share, "data__val_share": 0.25, **more}
        assert command(train, tiny_options(voc, tower, tmp_path / "run", **options), data=VOCData) == 0

    # Counted one by one: of what is set aside for validation nothing, nor of what is hidden.
    keep = share if share == "single_positive" else float(share)
    data = VOCData(root=str(voc), keep_labels=keep, val_share=0.25).splits(seed=0).train
    counts = [0.0] * 3
    for target, known in zip(data.target.tolist(), data.known.tolist(), strict=True):
        for label in range(3):
            counts[label] += known[label] and target[label] == 1
    there = read_voc(voc, train=True).target.sum(dim=0)
    assert all(0 < few < all_of for few, all_of in zip(counts, there.tolist(), strict=True))
    wanted = torch.tensor(counts)
    run(loop__epochs=1)
    assert torch.equal(Recognizer.from_pretrained(tmp_path / "run").model.known_positives, wanted)
    run(loop__epochs=2, run__resume="require")
    assert "going on from step" in capsys.readouterr().out
    saved = Checkpoints(tmp_path / "run" / "checkpoints").load()
    assert saved is not None
    assert torch.equal(saved[1]["model"]["known_positives"], wanted)
    Recognizer.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "again")
    again = Recognizer.from_pretrained(tmp_path / "again").model
    assert torch.equal(again.label_rows().positives, wanted)
    # Of other labels none is known, of the same as many, whatever their order.
    assert again.with_labels(["blue", "grey", "red"]).label_rows().positives.tolist() == [counts[2], 0.0, counts[0]]


def test_tagging_is_evaluation(finished: Path, voc: Path) -> None:
    recognizer = Recognizer.from_pretrained(finished)
    paths = sorted((voc / "VOCdevkit/VOC2007/JPEGImages").iterdir())[-6:]
    found = recognizer.tag_batch(torch.stack([recognizer.prepare(path) for path in paths]), threshold=0.0)
    for tags, path in zip(found, paths, strict=True):
        assert {tag.name for tag in tags} == set(LABELS)
        assert [tag.probability for tag in tags] == sorted((tag.probability for tag in tags), reverse=True)
        alone = {tag.name: tag.probability for tag in recognizer.tag(path, threshold=0.0)}
        assert {tag.name: tag.probability for tag in tags} == pytest.approx(alone, abs=1e-5)
    said = torch.tensor([[{tag.name: tag.probability for tag in tags}[name] for name in LABELS] for tags in found])
    test = read_voc(voc, split="test", train=False)
    report = multilabel_report(said, test.target, test.known, test.labels)
    told = json.loads((finished / "run.json").read_text())["results"]["PVLR"]
    for name in ("mAP", "hamming", "calibration_error"):  # Of which the last moves with every probability.
        assert getattr(report, name) == pytest.approx(told[name], abs=1e-4), name
    with pytest.raises(DataError, match=r"nowhere\.jpg: expected a picture, found no such file"):
        recognizer.tag("nowhere.jpg")


def test_damaged_and_missing_models_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="expected a trained model in this folder, found no such file"):
        Recognizer.from_pretrained(tmp_path)
    (tmp_path / "model.json").write_text((finished / "model.json").read_text())
    with pytest.raises(
        PretrainedError, match=r"model\.safetensors: expected a file of the trained model, found no such file"
    ):
        Recognizer.from_pretrained(tmp_path)
    content = bytearray((finished / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(PretrainedError, match="checksum mismatch"):
        Recognizer.from_pretrained(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(PretrainedError, match="expected the description of a model, found another content"):
        Recognizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"names": ["a", "b", "c", "d"]}}, "checksum mismatch"),
        ({"labels": {"names": []}}, "checksum mismatch"),
        ({"labels": 3}, "checksum mismatch"),
        ({"preprocess": {}}, "checksum mismatch"),
        ({"tower": []}, "checksum mismatch"),
        ({"files": 1}, "checksum mismatch"),
        ({"sha256": None}, "checksum mismatch"),
        ({"format": 1}, "expected a model of format 5, found format 1"),
    ],
)
def test_a_changed_description_of_a_model_is_refused(
    changes: dict[str, Any], message: str, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((finished / "model.safetensors").read_bytes())
    told = json.loads((finished / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(told, indent=4))
    assert Recognizer.from_pretrained(tmp_path).labels.names == LABELS  # What is laid out in another way is the same.
    (tmp_path / "model.json").write_text(json.dumps(told | changes))
    with pytest.raises(PretrainedError, match=message) as err:
        Recognizer.from_pretrained(tmp_path)
    assert str(tmp_path / "model.json") in str(err.value)
    assert "\n" not in str(err.value)


def test_a_model_of_another_version_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((finished / "model.safetensors").read_bytes())
    told = json.loads((finished / "model.json").read_text())
    for changes, message in (
        ({"headz": 4}, "they differ in 'headz'"),
        ({"heads": 7}, "heads"),
        ({"adapter_width": 2}, "weights: "),
    ):
        changed = told | {"config": told["config"] | changes}
        (tmp_path / "model.json").write_text(json.dumps(changed | {"sha256": _digest_of(changed)}))
        with pytest.raises(PretrainedError, match=f"this version of pvlr can read, but .*{message}"):
            Recognizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"[1]", b"null", b""])
def test_what_is_no_description_of_a_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(PretrainedError, match=r"model\.json: expected the description of a model, "):
        Recognizer.from_pretrained(tmp_path)


def test_random_towers_are_asked_for_and_always_the_same(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip.factory

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", CONFIGS["vit"])
    options = tiny_options(voc, tmp_path, tmp_path / "run", tower__name="tiny", loop__epochs=1)
    assert command(train, options, data=VOCData) == 2
    assert capsys.readouterr().err == (
        "error: tower.weights: expected a tag such as 'openai', a local file or 'random' with the name 'tiny', "
        "got none\n"
    )
    assert not (tmp_path / "run").exists()
    assert command(train, [*options, "--tower.weights=random"], data=VOCData) == 0
    torch.manual_seed(77)  # Whatever was drawn before.
    image = voc / "VOCdevkit/VOC2007/JPEGImages/000000.jpg"
    assert len(Recognizer.from_pretrained(tmp_path / "run").tag(image, threshold=0.0)) == 3
    assert command(train, [*options, "--tower.weights=random", "--run.resume=require"], data=VOCData) == 0
    options = tiny_options(voc, tmp_path, tmp_path / "other", tower__name="pvlr:scenes-clip", tower__weights="random")
    assert command(train, options, data=VOCData) == 2
    assert "which brings its own, got 'random'" in capsys.readouterr().err


def break_picture(folder: Path) -> None:
    (folder / "JPEGImages" / "000003.jpg").write_bytes(b"not a picture")


def break_split(folder: Path) -> None:
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n")


def break_label(folder: Path) -> None:
    (folder / "Annotations" / "000002.xml").write_text("<annotation><object><name>gren</name></object></annotation>")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (break_picture, ("JPEGImages/000003.jpg", "expected a picture", "found something else")),
        (break_split, ("ImageSets/Main/test.txt", "found an empty list")),
        (break_label, ("Annotations/000002.xml", "unknown label 'gren', the nearest known one is 'green'")),
    ],
)
def test_broken_data_is_one_line_that_names_the_file(
    harm: Any, parts: tuple[str, ...], workers: int, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(write_voc(tmp_path))
    options = tiny_options(tmp_path, tower, tmp_path / "run", data__workers=workers)
    assert command(train, options, data=VOCData) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loop.epoks=3"], "error: unrecognized arguments: --loop.epoks=3"),
        (["--loop.epoch=3"], "error: unrecognized arguments: --loop.epoch=3"),
        (["--loop.epochs=few"], "error: --loop.epochs: expected a whole number or auto, got few"),
        (["--loop.batch_size=few"], "error: --loop.batch_size: expected a whole number, got few"),
        (["--optimizer.lr=-1"], "error: optimizer.lr: expected a finite number > 0, got -1.0"),
        (
            ["--data.root=/nowhere"],
            "error: /nowhere: expected a folder that holds VOCdevkit/VOC2007, or the folders ",
        ),
        (["--tower.name=ViT-B-61"], "error: name: "),
        (["--loop.device=meta"], "error: loop.device: expected 'auto', 'cpu', 'cuda' or 'cuda:<number>', got 'meta'"),
        (["--loop.device=tpu9"], "error: loop.device: expected 'auto', 'cpu', 'cuda' or 'cuda:<number>', got 'tpu9'"),
        (["--loop.device=cuda:99"], "error: loop.device: expected a device of this machine, 'cuda:99' is not there"),
        (["--run.resume=require"], "error: run.resume: expected a run to go on with in "),
        ([f"--run.folder={__file__}"], "error: run.folder: expected a folder, or a place for one, found a file at "),
        (["--config=/nowhere.yaml"], "error: --config: expected a configuration file or the name of a recipe"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, tower: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(train, [*tiny_options(voc, tower, tmp_path / "run"), *options], data=VOCData) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_unknown_key_in_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mistake.yaml"
    path.write_text("loop:\n  epoks: 3\n")
    assert command(train, ["--config", str(path)], data=VOCData) == 2
    error = capsys.readouterr().err
    assert "epoks" in error
    assert error.count("\n") == 1


def test_impossible_download_is_three_lines(
    tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", unreachable)
    options = tiny_options(tmp_path / "new", tower, tmp_path / "run", data__obtain="download")
    assert command(train, options, data=VOCData) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 3
    assert "no route to host" in error
    assert "--data.root FOLDER" in error


def test_a_defect_keeps_its_traceback() -> None:
    def broken() -> None:
        int("no number")

    with pytest.raises(ValueError, match="invalid literal"):
        command(broken, [])


def test_exif_and_other_pictures_are_no_trouble(finished: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (5, 300), (255, 0, 0, 100)).save(tmp_path / "tall.png")
    assert len(Recognizer.from_pretrained(finished).tag(tmp_path / "tall.png", threshold=0.0)) == 3


def test_files_of_texts_are_kept_in_the_run(
    tower: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"red": ["the colour of blood."]}))
    options = tiny_options(voc, tower, tmp_path / "run", model__descriptions=texts, loop__epochs=1)
    assert command(train, options, data=VOCData) == 0
    texts.write_text(json.dumps({"red": ["the colour of a rose."]}))
    assert command(train, options, data=VOCData) == 2
    assert "the run was started on files of another content" in capsys.readouterr().err
    texts.unlink()
    assert command(train, options, data=VOCData) == 2
    assert f"model.descriptions: expected a file at {texts}, but No such file" in capsys.readouterr().err
    copy = tmp_path / "run" / "descriptions.json"
    content = copy.read_bytes()
    copy.write_bytes(content.replace(b"blood", b"roses"))
    with pytest.raises(PretrainedError, match=r"descriptions\.json: checksum mismatch: expected [0-9a-f]{64}, got"):
        Recognizer.from_pretrained(tmp_path / "run")
    copy.unlink()
    with pytest.raises(
        PretrainedError, match=r"descriptions\.json: expected a file of the trained model, found no such"
    ):
        Recognizer.from_pretrained(tmp_path / "run")
    copy.write_bytes(content)
    model = Recognizer.from_pretrained(tmp_path / "run").model
    assert model.knowledge_vectors.norm(dim=-1)[0] < 0.999 < model.knowledge_vectors.norm(dim=-1)[1]
