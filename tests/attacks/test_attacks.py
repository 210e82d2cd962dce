"""Hostile files, each made and met: refusals say which file and why, in a line; what is read means what it should."""

import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from attack import Attack, outcome
from attack_table import ATTACKS
from hostile_weights import acting, watched


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_outcome_is_as_told(attack: Attack, tmp_path: Path) -> None:
    found = outcome(attack, tmp_path)
    assert attack.outcome in found
    assert found.isprintable(), "one line, and nothing that a terminal obeys"
    assert len(found) < 1_500


def test_every_attack_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(attack.name for attack in ATTACKS).items() if count > 1] == []


def test_the_documentation_tells_their_number() -> None:
    assert f" {len(ATTACKS)} hostile, broken" in (Path(__file__).parents[2] / "docs" / "security.md").read_text()


@pytest.mark.filterwarnings("ignore")  # torch.jit is on its way out.
def test_what_is_run_and_fetched_would_be_seen(tmp_path: Path) -> None:
    acting(tmp_path / "w.pt")
    with pytest.raises(RuntimeError, match="code that came with weights was run"), watched(tmp_path):
        torch.jit.load(str(tmp_path / "w.pt"))
    with pytest.raises(RuntimeError, match="asked for"), watched(tmp_path / "elsewhere"), suppress(OSError):
        socket.create_connection(("127.0.0.1", 9))


def test_an_attack_that_succeeds_is_noticed(tmp_path: Path) -> None:
    def make(folder: Path) -> object:
        return lambda: 1 / 0

    with pytest.raises(ZeroDivisionError):
        outcome(Attack("an error of another kind", make, "refused"), tmp_path)
    assert outcome(Attack("a value", lambda folder: lambda: folder / "x", ""), tmp_path) == "read: x"
