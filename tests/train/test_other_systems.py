"""Systems without POSIX: no module of theirs is needed to import anything or to train."""

import subprocess
import sys
from pathlib import Path

from helpers.training_toys import tiny_options, write_voc

from pvlr.train.monitoring.step_metrics import step_metrics

# As on Windows; of what Python itself has there, nothing is taken away.
ABSENT = """
import sys
for name in ("fcntl", "resource", "termios", "grp", "pwd"):
    sys.modules[name] = None
import signal
for name in ("pthread_sigmask", "sigwaitinfo", "sigtimedwait", "SIGKILL", "SIGHUP", "SIGUSR1"):
    delattr(signal, name)
"""
IMPORT_ALL = """
import importlib, pkgutil
import pvlr
for module in pkgutil.walk_packages(pvlr.__path__, "pvlr."):
    importlib.import_module(module.name)
"""
TRAIN = """
from pvlr.train import VOCData, train
from pvlr.cli.command import command
sys.exit(command(train, sys.argv[1:], data=VOCData))
"""


def test_everything_is_imported_and_a_run_trained_without_modules_of_posix(tower: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    cached = {"tower__features": "cache", "run__tensorboard": "true", "run__baselines": "true"}
    options = tiny_options(tmp_path / "voc", tower, tmp_path / "run", **cached)
    code = [sys.executable, "-c", ABSENT + IMPORT_ALL + TRAIN]
    for more in ("--run.resume=never", "--loop.epochs=3"):
        done = subprocess.run([*code, *options, more], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout


def test_peak_memory_is_left_out_where_the_system_does_not_tell_it() -> None:
    code = f"{ABSENT}import torch\nfrom pvlr.train.monitoring.step_metrics import step_metrics\n"
    code += "print([name for name in step_metrics(torch.nn.Linear(1, 1), 1.0) if name.startswith('memory/process')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stderr
    import torch

    assert step_metrics(torch.nn.Linear(1, 1), 1.0)["memory/process_MiB"] > 1
