"""Recipes that come with the package: listed, printed, and found by name from any folder."""

from pathlib import Path

import pytest
import yaml

from pvlr.cli.main import main
from pvlr.cli.recipes import FOLDER, recipe_names


@pytest.fixture(autouse=True)
def _hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def configured(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    with pytest.raises(SystemExit) as end:
        main([*words, "--print_config"])
    assert end.value.code == 0
    return dict(yaml.safe_load(capsys.readouterr().out))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_they_are_listed_with_their_command_and_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == recipe_names()
    assert max(map(len, lines)) <= 100
    (quickstart,) = (line for line in lines if line.startswith("quickstart "))
    assert quickstart.split(maxsplit=4)[1:4] == ["pvlr", "train", "voc"]
    assert quickstart.split(maxsplit=4)[4].startswith("Generates a small data set of scenes")


@pytest.mark.parametrize("name", recipe_names())
def test_one_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out == (FOLDER / f"{name}.yaml").read_text()


def test_a_name_is_found_from_any_folder_and_a_file_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "voc", "--config", "quickstart"]
    assert configured(words, capsys)["tower"]["name"] == "pvlr:scenes-clip"
    assert configured(["train", "voc", "--config=quickstart"], capsys)["run"]["folder"] == "runs/quickstart"
    both = configured(["study", "--config", "ablation_voc", "--config", "choice_voc"], capsys)
    assert both["study"]["folder"] == "runs/choice_voc"
    Path("quickstart").mkdir()  # A folder is no configuration.
    assert configured(words, capsys)["tower"]["name"] == "pvlr:scenes-clip"
    Path("quickstart").rmdir()
    Path("quickstart").write_text("tower:\n  name: pvlr:photos\n")
    assert configured(words, capsys)["tower"]["name"] == "pvlr:photos"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["train", "voc", "--config", "{name}"], "--config"),
        (["evaluate", "--tower", "x", "--data", "{name}"], "--data"),
        (["doubtful", "--run", "x", "--data={name}"], "--data"),
        (["recipes", "{name}"], "NAME"),
    ],
)
@pytest.mark.parametrize("name", ["quickstrat", "examples/configs/quickstart.yaml", "../recipes/quickstart"])
def test_an_unknown_name_is_refused_with_the_nearest(
    words: list[str], option: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused([word.format(name=name) for word in words], capsys)
    assert message.startswith(f"error: {option}: expected ")
    assert name in message
    assert message.endswith("; the nearest recipe is quickstart\n")


def test_the_data_of_a_recipe_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The recipe has been read when the tower, or the folder of the data, is looked for.
    assert "pvlr:none" in refused(["evaluate", "--tower", "pvlr:none", "--data", "quickstart"], capsys)
    assert "x: expected a folder with a trained model" in refused(["doubtful", "--run=x", "--data=quickstart"], capsys)
