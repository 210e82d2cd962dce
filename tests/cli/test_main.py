"""The command `pvlr`: its table of commands, help that fits a screen, one spelling of options, refusals in a line."""

import ctypes
import inspect
import os
import re
import select
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import pvlr
from pvlr import memory
from pvlr.cli.command import command
from pvlr.cli.help import topics
from pvlr.cli.main import COMMANDS, KINDS, main
from pvlr.cli.options import Option, normalised, options_of, specialised
from pvlr.console import CLOSED_OUTPUT, until_output_closes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WHOLE = [name for name, entry in COMMANDS.items() if not entry.has_kinds]
# What there was to set when each of these was a script of its own.
OPTIONS = {
    "tag": "run tower weights labels threshold top out format html html_limit xmp label_studio image_prefix fiftyone "
    "benchmark batch_size workers device",
    "evaluate": "run scores tower weights kind data data_kind split device threshold resamples seed json csv",
    "doubtful": "run data data_kind tower out csv top batch_size device",
    "export": "out run tower kind labels names benchmark",
    "demo": "run tower weights labels host port device",
    "bulk": "pictures out run tower weights labels workers part_size batch_size device address",
}
SCRIPTS = {"predict": "tag", "ablate": "study", "tag_ray": "bulk"} | {f"train_{kind}": "train" for kind in KINDS}
SCRIPTS |= {name: name for name in ("evaluate", "export", "doubtful", "demo")}


@pytest.fixture(autouse=True)
def _hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of a refusal."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .+\n", err), err
    return err.removeprefix("error: ").rstrip("\n")


def configured(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    with pytest.raises(SystemExit) as end:
        main([*words, "--print_config"])
    assert end.value.code == 0
    return dict(yaml.safe_load(capsys.readouterr().out))


# ------------------------------------------------------------------------------------------- the table of commands


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], ["train"], ["train", "--help"], ["nothing"]])
def test_the_table_alone_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from pvlr.cli.main import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'jsonargparse', 'open_clip', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command_and_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["--help"], capsys)
    assert re.findall(r"^  (\w+) +[A-Z].*\.$", text, re.MULTILINE) == list(COMMANDS)
    assert said([], capsys) == said(["-h"], capsys) == text
    assert said(["--version"], capsys) == f"pvlr {pvlr.__version__}\n"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pvlr", "tga"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(", got tga; the nearest command is tag\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evalute"], "expected one of the commands tag, train, .*, got evalute; the nearest command is evaluate"),
        (["--verison"], "expected one of the commands tag, train, .*, got --verison"),
        (["train"], "pvlr train: expected a kind of data, one of voc, coco, nuswide, table, got none"),
        (["train", "--loop.epochs", "2"], "pvlr train: expected a kind of data, .*, got none"),
        (["train", "cocoa"], "pvlr train: expected a kind of data, .*, got cocoa; the nearest kind is coco"),
        (["study", "tables"], "pvlr study: expected a kind of data, .*, got tables; the nearest kind is table"),
    ],
)
def test_what_is_no_command_is_refused_with_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.fullmatch(message, refused(words, capsys))


def test_every_script_is_a_command() -> None:
    for name, called in SCRIPTS.items():
        text = (EXAMPLES / f"{name}.py").read_text()
        assert re.search(rf'sys\.exit\(script\("{called}"', text), name
        assert len(text.splitlines()) <= 30, name


# ---------------------------------------------------------------------------------------------------------- help


def test_the_help_of_a_script_has_its_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "train_coco.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: train_coco.py [--SECTION.OPTION VALUE ...]\n")
    assert "\n  train_coco.py --config coco_photos\n" in done.stdout
    assert said(["train", "coco", "-h"], capsys) == done.stdout.replace("train_coco.py", "pvlr train coco")


@pytest.mark.parametrize("words", [(name, kind) for name in ("train", "study") for kind in KINDS])
def test_short_help_fits_a_screen_and_names_what_is_real(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = said([*words, "--help"], capsys)
    lines = text.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    entry = COMMANDS[words[0]]
    module = import_module(entry.module)
    function = specialised(getattr(module, entry.function), {"data": module.KINDS[words[1]]})
    known = {option.name for option in options_of(function) if not option.is_section}
    shown = re.findall(r"^  --([\w.]+)  .*(?:\(default: .*\)|\(required\)|repeatable)$", text, re.MULTILINE)
    assert len(shown) >= 15
    assert set(shown) <= known | {"config"}
    assert {"tower.name", "tower.weights", "loop.epochs", "optimizer.lr", "data.shots", "data.keep_labels"} <= set(
        shown
    )
    assert {f"data.{name}" for name in module.COMMON_DATA[words[1]]} <= set(shown)
    assert set(module.USAGES[words[1]].common) <= known, "an option that there is no more"
    assert [line.split()[0] for line in text[text.index("\nsections") :].splitlines()[2:]] == topics(function)[:-1]
    assert f"\n  pvlr {' '.join(words)} --config " in text


@pytest.mark.parametrize("words", [("train", "voc"), ("study", "table")])
def test_sections_and_all_hold_every_option(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    entry = COMMANDS[words[0]]
    module = import_module(entry.module)
    function = specialised(getattr(module, entry.function), {"data": module.KINDS[words[1]]})
    leaves = [option.name for option in options_of(function) if not option.is_section]
    found = []
    for topic in topics(function)[:-1]:
        text = said([*words, "--help", topic], capsys)
        assert max(map(len, text.splitlines())) <= 100
        found += re.findall(r"^  --([\w.]+)", text, re.MULTILINE)
    assert found == leaves
    whole = re.findall(r"^  --([\w.]+)", said([*words, "--help", "all"], capsys), re.MULTILINE)
    assert whole == [*leaves, "config", "print_config"]
    assert refused([*words, "--help", "lopo"], capsys) == (
        f"--help: expected one of {', '.join(topics(function))}, got lopo; the nearest one is loop"
    )


@pytest.mark.parametrize("name", WHOLE)
def test_the_help_of_other_commands_is_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = COMMANDS[name]
    text = said([name, "--help"], capsys)
    lines = text.splitlines()
    assert text.startswith(f"usage: pvlr {name} [--OPTION VALUE ...]")
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    module = import_module(entry.module)
    parameters = inspect.signature(getattr(module, entry.function)).parameters
    named = module.USAGE.positional
    shown = re.findall(r"^  --([\w.]+)(?: .*|$)", text, re.MULTILINE)
    assert shown == [*(each for each in parameters if named is None or each != named[0]), "config", "print_config"]
    assert named is None or f" {named[1]}" in lines[0].replace("[", " ")
    assert set(OPTIONS.get(name, "").split()) <= set(shown)
    assert all(f"\n  pvlr {name} {example}".rstrip() in text for example in module.USAGE.examples)


# ------------------------------------------------------------------------------------------------- names of options


def test_dashes_and_underscores_are_the_same_in_names_and_not_in_values(capsys: pytest.CaptureFixture[str]) -> None:
    found = configured(
        ["tag", "a-b_c.jpg", "--batch-size", "3", "--label_studio=x-y_z", "--image-prefix", "p-q_r", "--xmp"], capsys
    )
    assert (found["batch_size"], found["label_studio"], found["image_prefix"]) == (3, "x-y_z", "p-q_r")
    assert (found["xmp"], found["benchmark"], found["pictures"]) == (True, False, ["a-b_c.jpg"])
    trained = configured(
        ["train", "voc", "--loop.batch-size", "5", "--data.train-split=my-split", "--data.flip"], capsys
    )
    assert trained["loop"]["batch_size"] == 5  # type: ignore[index]
    assert (trained["data"]["train_split"], trained["data"]["flip"]) == ("my-split", True)  # type: ignore[index]
    assert configured(["tag", "--xmp", "a.jpg"], capsys) == configured(["tag", "--xmp", "true", "a.jpg"], capsys)
    assert configured(["tag", "a.jpg", "--xmp", "no"], capsys)["xmp"] is False
    assert configured(["evaluate", "--print-config", "--data-kind", "coco"], capsys)["data_kind"] == "coco"


@given(st.text().filter(lambda text: not text.startswith("-")), st.sampled_from(["--batch-size", "--batch_size"]))
def test_values_are_never_touched(value: str, name: str) -> None:
    options = [Option("batch_size", str, "", ""), Option("xmp", bool, False, "")]
    assert normalised([name, value], options) == ["--batch_size", value]
    assert normalised([f"{name}={value}"], options) == [f"--batch_size={value}"]
    assert normalised([value, "--xmp", name, value], options) == [value, "--xmp=true", "--batch_size", value]
    assert normalised(["--", name, value], options) == ["--", name, value]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tag", "a.jpg", "--tp=3"], "unrecognized arguments: --tp=3; the nearest option is --top"),
        (["tag"], "expected PICTURE, found none"),
        (["tag", "a.jpg", "--top", "many"], "--top: expected a whole number or null, got many"),
        (["tag", "a.jpg", "--xmp=maybe"], "--xmp: expected true or false, got maybe"),
        (["tag", "a.jpg", "--out"], "--out: expected a value, found none"),
        (["tag", "a.jpg", "--format", "xml"], "--format: expected jsonl, csv or null, got xml"),
        (["export"], "expected --out, found none"),
        (["doubtful"], "expected --run, found none"),
        (["bulk", "--out", "x"], "expected --pictures, found none"),
        (["demo", "--port", "high"], "--port: expected a whole number, got high"),
        (["evaluate", "--kind", "ranks"], "--kind: expected probabilities or logits, got ranks"),
        (["train", "voc", "--data.flip", "maybe"], "--data.flip: expected true or false, got maybe"),
        (["train", "table", "--data.marks", "{x: perhaps}"], "--data.marks: expected a map to present, absent"),
    ],
)  # fmt: skip
def test_mistakes_name_the_option_and_what_it_takes(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(words, capsys).startswith(message)


def test_a_wrong_value_of_a_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("loop:\n  batch_size: few\n")
    message = refused(["train", "voc", "--config", str(tmp_path / "x.yaml")], capsys)
    assert message == f"{tmp_path / 'x.yaml'}: loop.batch_size: expected a whole number, got few"


def test_an_error_that_is_a_bug_keeps_its_traceback() -> None:
    def broken(*, times: int = 1) -> None:
        """Fail.

        Args:
            times: How often.
        """
        raise ValueError("of this test, which is not the package")

    with pytest.raises(ValueError, match="of this test"):
        command(broken, [])


@pytest.mark.skipif(not hasattr(select, "poll"), reason="a closed pipe is told by poll")
@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["towers", "--help"]])
def test_output_that_nobody_reads_ends_the_command_without_a_word(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([sys.executable, "-m", "pvlr", *words], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (CLOSED_OUTPUT, b"")


@pytest.mark.skipif(not hasattr(select, "poll"), reason="a closed pipe is told by poll")
def test_another_broken_pipe_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BrokenPipeError(32, "a worker's pipe")

    assert command(fail, []) == 2
    assert "a worker's pipe" in capsys.readouterr().err
    with pytest.raises(BrokenPipeError, match="a worker's pipe"):
        until_output_closes(fail)


# Large enough that glibc, as it is, takes it from the system page by page.
TOUCHED = """
import resource, sys
from pvlr.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * 64_000_000
before = faults()
for _ in range(5):
    b"x" * 64_000_000
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone")
def test_memory_that_is_freed_is_kept_unless_somebody_has_chosen(tmp_path: Path) -> None:
    def pages(how: str, **chosen: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | chosen
        command = [sys.executable, "-c", TOUCHED, how]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
        return int(run.stdout)

    given_back = pages("given back")
    assert given_back > 5 * 64_000_000 / 4096 / 2
    assert pages("kept") < given_back / 100
    assert pages("kept", MALLOC_MMAP_THRESHOLD_="100000") > given_back / 2


def test_processes_that_a_command_starts_keep_theirs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    set_here: dict[int, int] = {}

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            set_here[parameter] = value
            return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Library)
    for name in memory.SETTINGS:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "7")
    memory.keep_freed_memory()
    assert os.environ["MALLOC_TOP_PAD_"] == "7"
    assert {name: os.environ[name] for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")} == {
        "MALLOC_MMAP_THRESHOLD_": str(set_here[-3]),
        "MALLOC_TRIM_THRESHOLD_": str(set_here[-1]),
    }
    assert -2 not in set_here
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())  # As of musl.
    memory.keep_freed_memory()
