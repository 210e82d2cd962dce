"""What a run writes down about itself: configuration, versions, machine, results."""

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pvlr.train.checkpoint import write_atomically

__all__ = ["CONFIG_NAME", "RUN_NAME", "environment", "write_config", "write_record"]

CONFIG_NAME = "config.yaml"
RUN_NAME = "run.json"
PACKAGES = ("pvlr", "torchvision", "open_clip_torch", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """Versions, the commit of the code if it is a git checkout, and the machine."""
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_config(folder: Path, sections: Mapping[str, Any]) -> None:
    """Write ``config.yaml``, which ``--config`` takes."""
    import yaml

    write_atomically(folder / CONFIG_NAME, yaml.safe_dump(dict(sections), sort_keys=False).encode())


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, with the time of writing."""
    told = {**record, "written": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomically(folder / RUN_NAME, f"{json.dumps(told, indent=1)}\n".encode())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    # Of the folder of the code and not of the working folder, which may be any repository.
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
