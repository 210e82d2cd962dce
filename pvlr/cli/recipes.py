"""Recipes: configuration files that come with the package, found by their names."""

import re
import shutil
from itertools import takewhile
from pathlib import Path
from textwrap import shorten

from pvlr.cli.help import Usage
from pvlr.cli.options import nearest

__all__ = ["USAGE", "RecipeError", "find_config", "recipe_names", "recipes"]

USAGE = Usage(name="", examples=("", "quickstart"), positional=("name", "NAME"))
FOLDER = Path(__file__).resolve().parents[1] / "recipes"


class RecipeError(ValueError):
    """Error for a name that is neither a file nor a recipe."""


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted.

    Example:
        >>> "quickstart" in recipe_names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_config(name: str, option: str = "--config") -> Path:
    """Return the configuration file that a command line names.

    Args:
        name: Path of a file, or the name of a recipe; a file of that path goes first.
        option: Name of the option, for the message.

    Raises:
        RecipeError: with the nearest recipe, if there is neither.

    Example:
        >>> find_config("quickstart").name
        'quickstart.yaml'
    """
    path, recipe = Path(name), FOLDER / f"{name}.yaml"
    if path.exists() and not path.is_dir():
        return path
    if name in recipe_names():
        return recipe
    raise RecipeError(
        f"{option}: expected a configuration file or the name of a recipe ('pvlr recipes' lists them), found neither "
        f"at {name}{nearest(path.stem, recipe_names(), 'recipe')}"
    )


def recipes(*, name: str | None = None) -> None:
    """List the recipes that come with pvlr, or print one.

    Args:
        name: Recipe to print; without one, all are listed.

    Raises:
        RecipeError: with the nearest recipe, if there is none of that name.
    """
    if name is not None:
        if name not in recipe_names():
            raise RecipeError(
                f"NAME: expected a recipe ('pvlr recipes' lists them), got {name}"
                f"{nearest(Path(name).stem, recipe_names(), 'recipe')}"
            )
        print((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), end="")
        return
    rows = [(each, *_about(FOLDER / f"{each}.yaml")) for each in recipe_names()]
    wide, kind = (max(len(row[column]) for row in rows) for column in (0, 1))
    columns = shutil.get_terminal_size((100, 24)).columns
    for each, command, title in rows:
        print(
            f"{each:<{wide}}  {command:<{kind}}  {shorten(title, max(40, columns - wide - kind - 4), placeholder='…')}"
        )
    print("\npvlr recipes NAME prints one; COMMAND --config NAME uses one")


def _about(path: Path) -> tuple[str, str]:
    """Return the command that a recipe's first line names, and the first sentence of the comment below."""
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[lines.index("#") + 1 :]
    text = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), comment))
    return first.removeprefix("# ").split(" --")[0], re.split(r"\. |: ", text)[0]
