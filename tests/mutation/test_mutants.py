from mutants import Mutant, mutants

SOURCE = '''
def half(x: "float | None" = None) -> float:
    """The text - 1 of a docstring."""
    if x is None or x < 0:
        raise ValueError(f"{1 + 1} " + "not changed")
    return x / 2  # σ
'''


def changed_lines(mutant: Mutant) -> list[str]:
    pairs = zip(SOURCE.splitlines(), mutant.source.splitlines(), strict=True)
    return [new.strip() for old, new in pairs if old != new]


def test_every_operator_changes_one_line_and_neither_texts_nor_annotations() -> None:
    assert [changed_lines(mutant) for mutant in mutants("m.py", SOURCE)] == [
        ["if True:"],
        ["if False:"],
        ["if (x is None and x < 0):"],
        ["if (x is not None) or x < 0:"],
        ["if x is None or (x <= 0):"],
        ["if x is None or x < (1):"],
        ["return (x * 2)  # σ"],
        ["return x / (3)  # σ"],
    ]


def test_keys_tell_mutants_apart_and_do_not_depend_on_where_the_function_stands() -> None:
    source = "def f(x):\n    return x + 1 + 1\n"
    keys = [mutant.key for mutant in mutants("m.py", source)]
    assert len(set(keys)) == len(keys) == 6
    assert keys == [mutant.key for mutant in mutants("m.py", "import math\n\n\n" + source)]


def test_calls_arguments_and_statements_are_left_out() -> None:
    lines = {mutant.source for mutant in mutants("m.py", "check(x)\ny = torch.sigmoid(x).amax(dim=z)\n")}
    assert lines == {
        "pass\ny = torch.sigmoid(x).amax(dim=z)\n",
        "check(x)\ny = (x).amax(dim=z)\n",
        "check(x)\ny = (torch.sigmoid(x).amin(dim=z))\n",
        "check(x)\ny = (torch.sigmoid(x).amax())\n",
    }
