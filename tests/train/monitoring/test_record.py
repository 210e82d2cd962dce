"""Records of runs: enough to repeat one, also after it moved, and nothing that is not so."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pvlr.train.monitoring import record
from pvlr.train.monitoring.record import environment, started, write_record


def test_versions_are_those_of_what_is_loaded() -> None:
    versions = environment()["versions"]
    assert versions["torch"] == torch.__version__
    assert versions["pytest"] == version("pytest")
    assert "ruff" not in versions  # Installed for other ends, and loaded by nobody.


def test_machine_says_what_speed_depends_on() -> None:
    machine = environment()["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["cores"] >= 1
    assert len(machine["gpus"]) == torch.cuda.device_count()


def checkout(folder: Path) -> Path:
    """A git checkout with one committed file in a package; returns the file."""
    code = folder / "package" / "train" / "monitoring" / "record.py"
    code.parent.mkdir(parents=True)
    code.write_text("pass\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    return code


def test_commit_and_whether_the_code_differs_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = checkout(tmp_path)
    monkeypatch.setattr(record, "__file__", str(code))
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    clean = environment()
    assert (clean["commit"], clean["changed"]) == (head.stdout.strip(), False)
    (tmp_path / "a run's output").write_text("beside the package")
    assert environment()["changed"] is False
    code.write_text("raise\n")
    assert environment()["changed"] is True
    code.write_text("pass\n")
    (code.parents[2] / "new.py").write_text("pass\n")
    assert environment()["changed"] is True


def test_an_installed_copy_in_another_checkout_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout(tmp_path)
    installed = tmp_path / ".venv" / "pvlr" / "train" / "monitoring" / "record.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("pass\n")
    monkeypatch.setattr(record, "__file__", str(installed))
    assert (environment()["commit"], environment()["changed"]) == (None, None)


def test_a_run_that_moved_tells_of_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_version(number: str) -> dict[str, object]:
        return {"versions": {"torch": number}, "commit": number, "changed": False, "machine": {}}

    for number, step in (("1", 0), ("2", 5), ("3", 9)):
        monkeypatch.setattr(record, "environment", lambda number=number: at_version(number))
        write_record(tmp_path, {"status": "running", **started(tmp_path, step=step)})
    told = json.loads((tmp_path / "run.json").read_text())
    assert [(part["commit"], part["from_step"]) for part in told["earlier"]] == [("1", 0), ("2", 5)]
    assert all(part["written"] and part["command"] for part in told["earlier"])
    assert (told["commit"], told["from_step"]) == ("3", 9)
    assert started(tmp_path, step=0)["earlier"] == []  # Begun anew: what was there before is not of this run.


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_broken_record_stops_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert started(tmp_path, step=3)["earlier"] == []


def test_the_command_is_what_a_shell_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys: ModuleType = record.sys  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "a script.py"])
    monkeypatch.setattr(sys, "argv", ["a script.py", "--run.folder", "x y"])
    assert started(tmp_path, step=0)["command"] == "python 'a script.py' --run.folder 'x y'"
