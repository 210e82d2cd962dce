"""What a run writes down about itself: all that it takes to repeat it, and what came of it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from pvlr.core.files import write_atomically

__all__ = ["CONFIG_NAME", "RUN_NAME", "environment", "started", "write_config", "write_record"]

CONFIG_NAME = "config.yaml"
RUN_NAME = "run.json"
# What belongs to one process and not to the run: a run that goes on elsewhere has several of each.
PROCESS = ("started", "written", "from_step", "command", "versions", "commit", "changed", "machine")


def environment() -> dict[str, Any]:
    """Versions of Python and of every package that is loaded, the commit of the code, and the machine.

    ``commit`` is None where the code is no git checkout; ``changed`` says whether the package differs from it.

    Example:
        >>> sorted(environment())
        ['changed', 'commit', 'machine', 'versions']
    """
    loaded = {name.partition(".")[0] for name in sys.modules}
    packages = {owner for name, owners in packages_distributions().items() if name in loaded for owner in owners}
    code = str(Path(__file__).parent.parent)
    # Of the folder of the code and not of the working folder; and only if git knows the code: an installed copy may lie
    # in the checkout of another project.
    known = _git(code, "ls-files", "--error-unmatch", str(Path(__file__)))
    changes = _git(code, "status", "--porcelain", "--", ".") if known is not None else None
    return {
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in sorted(packages, key=str.lower)}
        | {"torch": str(torch.__version__)},  # Which names the build as well.
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


def started(folder: Path, *, step: int) -> dict[str, Any]:
    """What is written down of this process, and in ``earlier`` of those that this one goes on for.

    Args:
        folder: The run's folder, with the record of the process before, if there was one.
        step: Number of steps that those have done; 0: none of them counts.
    """
    earlier: list[Any] = []
    if step > 0 and (folder / RUN_NAME).is_file():
        try:
            before = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
            earlier = [*before.get("earlier", []), {name: before.get(name) for name in PROCESS}]
        except (ValueError, AttributeError):
            earlier = []  # Whoever broke the file: the run itself is in its checkpoints.
    return {
        "started": _now(),
        "from_step": step,
        "command": shlex.join([*sys.orig_argv[:1], *sys.argv]),
        **environment(),
        "earlier": earlier,
    }


def write_config(folder: Path, sections: Mapping[str, Any]) -> None:
    """Write ``config.yaml``, which ``--config`` takes."""
    import yaml

    write_atomically(folder / CONFIG_NAME, yaml.safe_dump(dict(sections), sort_keys=False).encode())


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, with the time of writing."""
    write_atomically(folder / RUN_NAME, f"{json.dumps({**record, 'written': _now()}, indent=1)}\n".encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(folder: str, *command: str) -> str | None:
    """What git says about a folder; None where it, or a checkout, is not there."""
    # Asked for the status, git would like to write its index, which the checkout may be in use for elsewhere.
    line = ["git", "--no-optional-locks", "-C", folder, *command]
    try:
        found = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _processor() -> str:
    """The processor's model, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
