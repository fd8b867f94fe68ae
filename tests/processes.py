"""Functions in other processes: copies of the test's own, in which nothing is imported again."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from accelerate import PartialState

from erasure.io.processes import state
from tests.demo.running import free_port

SECONDS = 540


def in_copies(*functions: Callable[[], Any]) -> list[Any]:
    """Return the results of functions that run at the same time, each in a copy of this process."""
    context = get_context("fork")
    started = []
    for function in functions:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(function, theirs))
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        assert all(ours.poll(SECONDS) for _, ours in started), "no result"
        results = [ours.recv() for _, ours in started]
        for process, _ in started:
            process.join(SECONDS)
        assert not any(process.exitcode for process, _ in started)
        return results
    finally:
        for process, _ in started:
            process.kill()


def in_two_processes(function: Callable[..., Any], *arguments: object, **environment: str) -> list[Any]:
    """Return the results of a function in two processes that are set up as by `accelerate launch`."""
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}

    def of_rank(rank: int) -> Callable[[], Any]:
        def run() -> Any:
            os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
            PartialState._reset_state()  # of the process that this is a copy of
            group = PartialState(cpu=True) if torch.cuda.is_available() else state()
            assert (group.num_processes, group.process_index) == (2, rank)
            result = function(*arguments)
            group.wait_for_everyone()
            group.destroy_process_group()
            return result

        return run

    return in_copies(of_rank(0), of_rank(1))


def _run(function: Callable[[], Any], result: Connection) -> None:
    # A copy makes torch's pool of threads anew at its first use, which several threads at once must not be.
    torch.set_num_threads(torch.get_num_threads())
    result.send(function())
