"""Every name of open_clip's, in small, beside open_clip's own outputs: ``python tests/towers/all_names.py [NAME ...]``.

Each model is built as its configuration says, but narrow and of few blocks, with weights none of which is zero; its
towers are loaded from files and compared. It prints a table, and says which names are refused and why; with
``--write docs/towers.md`` it writes the table into that page. It ends with an error where anything differs by more than
1e-5 of the largest value.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # beside the other helpers of tests

import open_clip
from checks import export_error, image_errors, text_errors, training_errors
from helpers.small_trunks import small_trunks
from shrunken import shrunken_config, write_shrunken

from pvlr.core.towers import TowerError, Towers, load_towers
from pvlr.core.towers.building import refuse_unsupported
from pvlr.core.towers.image.tower import OpenClipImageTower

BOUND = 1e-5
BEGIN, END = "<!-- written by tests/towers/all_names.py -->", "<!-- end -->"
COLUMNS = {
    "pooled": "pooled vector",
    "patches": "patches",
    "size": "at another size",
    "text": "sentences",
    "context": "context",
    "checkpointed": "gradients, checkpointed",
    "export": "exported",
}


class Outcome(NamedTuple):
    """Outcome of a name.

    Attributes:
        family: Kind of image tower and of text tower; None where it is refused.
        errors: The largest relative error of each check.
        refusal: Why it is refused.
    """

    family: tuple[str, str] | None = None
    errors: dict[str, float] = {}  # noqa: RUF012  # never changed
    refusal: str = ""

    @property
    def wrong(self) -> list[str]:
        """The checks that failed."""
        return [name for name, error in self.errors.items() if not error <= BOUND]


def check(name: str) -> Outcome:
    """Build a small model of that name and compare its towers; equal small models are compared once."""
    return _check(name, json.dumps(shrunken_config(name), sort_keys=True))


def _check(name: str, config: str) -> Outcome:
    outcome = _check_config(config)
    return outcome._replace(refusal=outcome.refusal.replace("NAME", name))


@cache
def _check_config(config: str) -> Outcome:
    with small_trunks(), tempfile.TemporaryDirectory() as folder:
        try:
            refuse_unsupported("NAME", json.loads(config))
            model = write_shrunken(Path(folder), json.loads(config))
            towers = load_towers(f"local-dir:{folder}")
        except TowerError as err:
            return Outcome(refusal=str(err).replace(f"local-dir:{folder}", "NAME"))

        def build(how: str) -> OpenClipImageTower:
            visual = deepcopy(model.visual)  # as open_clip built it: none of it is frozen yet
            visual.load_state_dict(towers.image.visual.state_dict())
            return OpenClipImageTower(visual, patch_features=how)

        errors = image_errors(model.visual, build) | text_errors(model, towers)
        errors |= training_errors(build) | export_error(build("value"))
    return Outcome(family=_family(model, towers), errors=errors)


def _family(model: Any, towers: Towers) -> tuple[str, str]:
    visual = model.visual
    image = type(visual).__name__
    if image == "TimmModel":
        trunk = visual.trunk
        image = f"timm {type(trunk).__name__}"
        if hasattr(trunk, "num_prefix_tokens"):
            pools = {"map": "attention pool", "token": "class token"}
            image += f", {pools.get(trunk.global_pool, 'mean of tokens')}"
        if hasattr(getattr(trunk, "patch_embed", None), "backbone"):
            image += ", convolutions first"
    elif image == "VisionTransformer":
        image += ", class token" if visual.pool_type == "tok" else ", mean of tokens"
    encoder = getattr(getattr(model, "text", model), "transformer", None)
    kind = "transformer" if type(encoder).__name__ == "Transformer" else type(encoder).__name__
    return image, f"{kind}, {towers.text.path}"


def table(outcomes: dict[str, Outcome]) -> str:
    """Return a row for each pair of kinds of towers; names that are refused below, with the reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, outcome in outcomes.items():
        if outcome.family is not None:
            groups.setdefault(outcome.family, []).append(name)
    lines = [
        f"| image tower | text tower | names | {' | '.join(COLUMNS.values())} |",
        f"|---|---|---|{'---|' * len(COLUMNS)}",
    ]
    for (image, text), names in sorted(groups.items()):
        errors = [_shown(max(outcomes[name].errors[column] for name in names)) for column in COLUMNS]
        lines.append(f"| {image} | {text} | {len(names)} | {' | '.join(errors)} |")
    lines += ["", *_names(groups), *_refused(outcomes)]
    return "\n".join(lines)


def _shown(error: float) -> str:
    return "0" if error == 0 else f"{error:.0e}"


def _names(groups: dict[tuple[str, str], list[str]]) -> Iterable[str]:
    yield "| image tower | names |\n|---|---|"
    images = sorted({image for image, _ in groups})
    for image in images:
        names = sorted(name for (kind, _), group in groups.items() if kind == image for name in group)
        yield f"| {image} | {', '.join(f'`{name}`' for name in names)} |"
    yield ""


def _refused(outcomes: dict[str, Outcome]) -> Iterable[str]:
    refused = {name: outcome.refusal for name, outcome in outcomes.items() if outcome.refusal}
    if refused:
        yield "| refused | because |\n|---|---|"
        yield from (f"| `{name}` | {reason} |" for name, reason in refused.items())


def summary(outcomes: dict[str, Outcome], seconds: float) -> str:
    """Return the number of names that load, the largest error, and the time it took."""
    loaded = [outcome for outcome in outcomes.values() if outcome.family is not None]
    largest = max((max(outcome.errors.values()) for outcome in loaded), default=0.0)
    return (
        f"open_clip {open_clip.__version__}: {len(loaded)} of {len(outcomes)} names load; the largest error is "
        f"{_shown(largest)} of the largest value; {seconds / 60:.1f} minutes."
    )


def main(names: Sequence[str], page: Path | None) -> int:
    """Check, print and write; return 1 where anything differs."""
    began, outcomes = time.perf_counter(), {}
    for name in names:
        start, outcomes[name] = time.perf_counter(), check(name)
        outcome = outcomes[name]
        said = outcome.refusal or " ".join(f"{check} {_shown(error)}" for check, error in outcome.errors.items())
        print(f"{time.perf_counter() - start:5.1f} s  {name}: {said}", file=sys.stderr, flush=True)
    text = f"{summary(outcomes, time.perf_counter() - began)}\n\n{table(outcomes)}"
    print(text)
    if page is not None:
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    wrong = {name: outcome.wrong for name, outcome in outcomes.items() if outcome.wrong}
    for name, checks in wrong.items():
        print(f"{name}: {', '.join(checks)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of open_clip's; all of them without any")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="page to write the table into, such as docs/towers.md"
    )
    given = parser.parse_args()
    unknown = set(given.names) - set(open_clip.list_models())
    if unknown:
        parser.error(f"unknown names: {', '.join(sorted(unknown))}")
    sys.exit(main(given.names or open_clip.list_models(), given.write))
