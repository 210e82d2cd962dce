"""Record of a run: its configuration, environment and results, as needed to reproduce it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from pvlr.files import write_atomically
from pvlr.runs import RUN_NAME

__all__ = ["CONFIG_NAME", "RUN_NAME", "environment", "started", "write_config", "write_record"]

CONFIG_NAME = "config.yaml"
# Fields of one process and not of the run: a resumed run has several of each.
PROCESS = ("status", "started", "written", "from_step", "command", "versions", "commit", "changed", "machine")


def environment() -> dict[str, Any]:
    """Return versions of Python and of every loaded package, the commit of the code, and the machine.

    ``commit`` is None if the code is no git checkout; ``changed`` is True if the package differs from the commit.

    Example:
        >>> sorted(environment())
        ['changed', 'commit', 'machine', 'versions']
    """
    loaded = {name.partition(".")[0] for name in sys.modules}
    packages = {owner for name, owners in _owners().items() if name in loaded for owner in owners}
    code = str(Path(__file__).parents[2])  # The whole package.
    # Of the folder of the code and not of the working folder; and only if the code is tracked by git: an installed copy
    # may be in the checkout of another project.
    known = _git(code, "ls-files", "--error-unmatch", str(Path(__file__)))
    changes = _git(code, "status", "--porcelain", "--", ".") if known is not None else None
    return {
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in sorted(packages, key=str.lower)}
        | {"torch": str(torch.__version__)},  # Includes the build.
        "commit": _git(code, "rev-parse", "HEAD") if known is not None else None,
        "changed": None if changes is None else bool(changes),
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        },
    }


@cache
def _owners() -> Mapping[str, list[str]]:
    """Return the packages that each module's name is of: read once in a process, which takes half a second."""
    return packages_distributions()


def started(folder: Path, *, step: int, last: str | None = None) -> dict[str, Any]:
    """Return the fields of this process, and in ``earlier`` those of the processes that it resumes.

    Args:
        folder: The run's folder, with the record of the previous process, if there was one.
        step: Number of steps done by earlier processes; 0: they are ignored.
        last: How the last of them ended, see ``pvlr.runs.state_of_run``; None: what its record says.
    """
    earlier: list[Any] = []
    if step > 0 and (folder / RUN_NAME).is_file():
        try:
            before = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
            ended = {} if last is None else {"status": last}
            earlier = [*before.get("earlier", []), {name: before.get(name) for name in PROCESS} | ended]
        except (ValueError, AttributeError):
            earlier = []  # A damaged record is ignored: the run itself is in its checkpoints.
    return {
        "started": _now(),
        "from_step": step,
        "command": shlex.join([*sys.orig_argv[:1], *sys.argv]),
        **environment(),
        "earlier": earlier,
    }


def write_config(folder: Path, sections: Mapping[str, Any]) -> None:
    """Write ``config.yaml``, for ``--config``."""
    import yaml

    write_atomically(folder / CONFIG_NAME, yaml.safe_dump(dict(sections), sort_keys=False).encode())


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, with the time of writing."""
    write_atomically(folder / RUN_NAME, f"{json.dumps({**record, 'written': _now()}, indent=1)}\n".encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(folder: str, *command: str) -> str | None:
    """Return the output of a git command in a folder; None if git or a checkout is missing."""
    # Without this option git status writes its index, which another process may be using.
    line = ["git", "--no-optional-locks", "-C", folder, *command]
    try:
        found = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _processor() -> str:
    """Return the processor's model, from ``/proc/cpuinfo`` if it exists."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
