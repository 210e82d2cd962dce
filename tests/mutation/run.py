"""Mutation testing: change one place of the code at a time (see ``mutants.py``), and see whether a test fails.

    python tests/mutation/run.py [--files functional,head] [--sample 30] [--seed 0] [--jobs 2]
                                 [--out report.json] [--again report.json]

Every mutant runs in a fork of a process that has torch and pytest loaded but not ``pvlr``, in a copy of the package,
on the tests of its module with few examples; what they let live meets more examples and the neighbours' tests.
``equivalent.txt`` lists the mutants that no test can kill, each with its reason; an entry that is killed, or is no
mutant any more, is stale. The exit code is 1 where a score (killed of those not equivalent) is below 90 %, where an
entry is stale, or, of a sample, where anything survives that is not listed.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutants import mutants

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
EQUIVALENT = HERE / "equivalent.txt"
PASS_SCORE = 0.9
# Seconds, besides ten times what the tests take on the code as it is; an endless loop is a death too.
TIMEOUT = 30.0

# Module of pvlr.core to its own tests (with the examples in its docstrings), then to those of the modules that use it.
_BLOCK = ["test_starts", "test_constructors", "test_refusals"]
_WHOLE = ["test_contracts", "test_blocks_together", "models/test_model"]
TESTS: dict[str, tuple[list[str], list[str]]] = {
    "functional": (
        ["test_functional", "test_functional_refusals", "test_refusals"],
        ["test_rows", "test_contracts", "test_attention", "test_fusion", "test_head", "test_prompts"],
    ),
    "losses": (["test_losses"], ["test_contracts"]),
    "metrics/ranking": (["metrics/test_ranking"], ["metrics/test_ranking_published"]),
    "attention": (
        ["test_attention", *_BLOCK],
        ["test_rows", "test_fusion", "test_prompts", *_WHOLE],
    ),
    "fusion": (["test_fusion", *_BLOCK], _WHOLE),
    "head": (["test_head", *_BLOCK], ["test_rows", *_WHOLE]),
    "prompts": (["test_prompts", "test_prompt_bank", *_BLOCK], ["test_rows", *_WHOLE]),
    "base": (["test_base"], ["test_rows", *_WHOLE]),
    "mixture": (["test_mixture", *_BLOCK], _WHOLE),
    "adapter": (["test_adapter", *_BLOCK], _WHOLE),
    "semantic": (["test_semantic", *_BLOCK], ["test_rows", *_WHOLE]),
    "residual": (["test_residual", *_BLOCK], _WHOLE),
    "models/output": (
        ["models/test_output"],
        ["models/test_model", "models/test_model_laws", "models/test_model_positives"],
    ),
}
# Tests left out of each stage: the slow ones, about something else than what a mutant changes.
FIRST = "not compile and not ten_thousand and not coco"
SECOND = "not exported and not one_compiled_graph and not mapped and not all_of_coco"


@dataclass(frozen=True)
class Task:
    """One mutant of one module, and what became of it."""

    module: str
    key: str
    line: int
    column: int
    operator: str
    source: str
    status: str = ""
    seconds: float = 0.0
    equivalent: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", default=",".join(TESTS), help="modules of pvlr.core, with commas between")
    parser.add_argument("--sample", type=int, help="number of mutants to draw; all if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", type=Path, help="report of an earlier run: only what survived there")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    options = parser.parse_args()
    files = options.files.split(",")
    if unknown := set(files) - set(TESTS):
        parser.error(f"--files: expected some of {', '.join(TESTS)}, got {', '.join(sorted(unknown))}")

    sources = {module: (REPOSITORY / "pvlr/core" / f"{module}.py").read_text() for module in files}
    tasks = list(_tasks(sources))
    listed = _listed(EQUIVALENT.read_text())
    names = tuple(f"{module}.py " for module in files)
    stale = [f"no such mutant: {key}" for key in listed if key.startswith(names) and key not in {t.key for t in tasks}]
    if options.again:
        alive = {entry["key"] for entry in json.loads(options.again.read_text()) if entry["status"] == "survived"}
        tasks = [task for task in tasks if task.key in alive]
    if options.sample is not None:
        tasks = random.Random(options.seed).sample(tasks, min(options.sample, len(tasks)))

    started = time.monotonic()
    done = _run(tasks, sources, options.jobs, listed)
    stale += [f"killed: {task.key}" for task in done if task.equivalent and task.status != "survived"]
    survivors = [task for task in done if task.status == "survived" and not task.equivalent]
    good = _table(files, done)
    for task in survivors:
        print(f"survived: {task.module}.py:{task.line}:{task.column}\n  {task.key}")
    for entry in stale:
        print(f"stale in {EQUIVALENT.name}: {entry}")
    print(f"{len(done)} mutants in {time.monotonic() - started:.0f} s")
    if options.out:
        options.out.write_text(json.dumps([{**vars(task), "source": None} for task in done], indent=1) + "\n")
    return int(bool(stale) or (bool(survivors) if options.sample is not None else not good))


def _tasks(sources: dict[str, str]) -> Iterator[Task]:
    for module, source in sources.items():
        for mutant in mutants(f"{module}.py", source):
            yield Task(module, **vars(mutant))


def _listed(text: str) -> set[str]:
    """Keys of the equivalent mutants: the indented lines, each group under its reason."""
    groups = [group.splitlines() for group in text.split("\n\n")]
    for group in groups:
        if group[0].startswith(" "):
            raise SystemExit(f"{EQUIVALENT.name}: expected a reason above {group[0].strip()}")
    return {line.strip() for group in groups for line in group if line.startswith(" ")}


def _table(files: list[str], done: list[Task]) -> bool:
    """Print one line per file and their sum; whether every score is good enough."""
    good = True
    print(f"{'file':<16}{'mutants':>8}{'killed':>8}{'equivalent':>12}{'survived':>10}{'score':>9}")
    for name in [*files, "all"]:
        tasks = [task for task in done if name in (task.module, "all")]
        counted = [task for task in tasks if not task.equivalent]
        killed = sum(task.status != "survived" for task in counted)
        score = killed / len(counted) if counted else 1.0
        good = good and score >= PASS_SCORE
        equal, alive = len(tasks) - len(counted), len(counted) - killed
        print(f"{name:<16}{len(tasks):>8}{killed:>8}{equal:>12}{alive:>10}{score:>9.1%}")
    return good


def _run(tasks: list[Task], sources: dict[str, str], jobs: int, listed: set[str]) -> list[Task]:
    """Run all tasks, ``jobs`` at a time, after the tests have passed on what is not changed."""
    _prepare()
    done: list[Task] = []
    with tempfile.TemporaryDirectory(prefix="pvlr-mutants-") as folder:
        first = _copy(Path(folder) / "0")
        limits = {(module, 0): _limit(first, module, 0) for module in dict.fromkeys(task.module for task in tasks)}
        # Copied only now, with the byte code of all that is not changed.
        places = [first, *(shutil.copytree(first, Path(folder) / str(job)) for job in range(1, jobs))]
        waiting = [(task, 0, 0.0) for task in reversed(tasks)]
        running: dict[Path, tuple[int, Task, int, float, float]] = {}
        while waiting or running:
            for place in places:
                if place not in running and waiting:
                    task, stage, spent = waiting.pop()
                    _write(place, task.module, task.source)
                    running[place] = (_start(place, task.module, stage), task, stage, spent, time.monotonic())
            time.sleep(0.02)
            for place, (child, task, stage, spent, since) in list(running.items()):
                seconds = time.monotonic() - since
                pid, ended = os.waitpid(child, os.WNOHANG)
                if not pid:
                    if seconds > limits[task.module, stage]:
                        os.killpg(child, signal.SIGKILL)
                    continue
                del running[place]
                _write(place, task.module, sources[task.module])
                code = os.waitstatus_to_exitcode(ended)
                if code == 0 and stage == 0 and task.key not in listed:
                    if (task.module, 1) not in limits:
                        limits[task.module, 1] = _limit(place, task.module, 1)
                    waiting.append((task, 1, seconds))
                    continue
                status = {0: "survived", -signal.SIGKILL: "timeout"}.get(code, "killed")
                fields = {"status": status, "seconds": spent + seconds, "equivalent": task.key in listed}
                done.append(Task(**{**vars(task), **fields}))
                if status != "killed" or len(done) % 50 == 0:
                    print(f"{len(done)} of {len(tasks)}: {status}, {task.key}", file=sys.stderr, flush=True)
    order = {task.key: place for place, task in enumerate(tasks)}
    return sorted(done, key=lambda task: order[task.key])


def _limit(place: Path, module: str, stage: int) -> float:
    """Seconds after which a mutant counts as dead: the tests have to pass on the code as it is, and are timed."""
    since = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(_start(place, module, stage, untouched=True), 0)[1])
    if code != 0:
        log = (place / "log.txt").read_text()
        raise SystemExit(f"the tests of {module} do not pass on the code as it is ({code}):\n{log}")
    return TIMEOUT + 10 * (time.monotonic() - since)


def _prepare() -> None:
    """Load what every child needs, except ``pvlr``; fewer examples, and the same ones every time."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("PVLR_SHARED", str(REPOSITORY.parent / "shared"))
    import beartype  # noqa: F401
    import einops  # noqa: F401
    import jaxtyping  # noqa: F401
    import open_clip  # noqa: F401
    import pytest  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch._dynamo  # noqa: F401
    from hypothesis import Phase, settings

    # The profile of tests/helpers/strategies.py inherits from this one what it does not set itself.
    settings.register_profile("mutation", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    gc.collect()
    gc.freeze()  # So that no child walks through all of torch, which costs it a second.


def _copy(place: Path) -> Path:
    for name in ("pvlr", "tests"):
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", place)
    return place


def _write(place: Path, module: str, source: str) -> None:
    """Put the text of a module in place, and leave no byte code of another one."""
    path = place / "pvlr/core" / f"{module}.py"
    path.write_text(source)
    for cached in path.parent.glob(f"__pycache__/{path.stem}.*"):
        cached.unlink()


def _start(place: Path, module: str, stage: int, untouched: bool = False) -> int:
    """Fork a child that runs the tests of a stage and says by its exit code how they went."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        log = os.open(place / "log.txt" if untouched else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(place)
        sys.path[:] = [str(place), *(path for path in sys.path if path not in (str(HERE), str(REPOSITORY)))]
        sys.dont_write_bytecode = not untouched
        os.environ["PVLR_EXAMPLES"] = "25" if stage else "10"
        own, wider = TESTS[module]
        names = [*own, *wider] if stage else own
        chosen = [f"pvlr/core/{module}.py", *(f"tests/core/{name}.py" for name in names)]
        import pytest

        # Plain asserts: no test is read for its message here, and rewriting them takes longer than running them.
        flags = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-k", SECOND if stage else FIRST]
        code = int(pytest.main([*flags, *chosen]))
    finally:
        os._exit(code)  # Whatever happened: nothing of the parent's may run twice.


if __name__ == "__main__":
    raise SystemExit(main())
