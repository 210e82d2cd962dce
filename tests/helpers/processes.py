"""Run a function in several processes that know each other as torchrun's do."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

# A process that has imported what tests need and from which others are split off at no cost; unlike this one it has run
# no backward pass, after which torch refuses to be split.
CONTEXT = multiprocessing.get_context("forkserver")
multiprocessing.set_forkserver_preload(
    ["open_clip", "jsonargparse", "torchvision.datasets", "pvlr.train", "pvlr.cli.command"]
)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def _run(queue: Any, function: Callable[..., Any], environment: dict[str, str], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    from pvlr.train.distributed import destroy_process_group, join_world

    try:
        outcome = function(join_world(), *arguments)
        destroy_process_group()
    except Exception as err:
        outcome = err
    # As bytes: tensors would be handed over in memory that ends with this process.
    queue.put((int(environment["RANK"]), pickle.dumps(outcome)))
    queue.close()
    queue.join_thread()
    os._exit(0)


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """Return what ``function(world, *arguments)`` returned or raised in each process; None for one that died."""
    queue: Any = CONTEXT.Queue()
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(size):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(CONTEXT.Process(target=_run, args=(queue, function, environment, arguments)))
        started[-1].start()
    found: list[Any] = [None] * size
    try:
        for process in started:
            process.join(timeout)
            assert not process.is_alive(), "a process hangs"
    finally:
        for process in started:
            process.kill()
    while not queue.empty():
        rank, outcome = queue.get()
        found[rank] = pickle.loads(outcome)  # noqa: S301
    return found
