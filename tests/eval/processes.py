"""A function in several processes, in the environment that `accelerate launch` gives them."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from accelerate import PartialState

from tests.demo.running import free_port

SECONDS = 540


def in_two_processes(function: Callable[..., Any], *arguments: object, **environment: str) -> list[Any]:
    """Return the results of a function in two processes, which are copies of this one and wait for each other."""
    context = get_context("fork")  # imports nothing again
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}
    started = []
    for rank in ("0", "1"):
        ours, theirs = context.Pipe(duplex=False)
        arguments_of_run = (theirs, {**variables, "RANK": rank, "LOCAL_RANK": rank}, function, arguments)
        process = context.Process(target=_run, args=arguments_of_run)
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        assert all(ours.poll(SECONDS) for _, ours in started), "no result"
        return [ours.recv() for _, ours in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def _run(result: Connection, variables: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(variables)
    PartialState._reset_state()  # of the process that this is a copy of
    state = PartialState(cpu=True)
    assert (state.num_processes, state.process_index) == (2, int(variables["RANK"]))
    result.send(function(*arguments))
    state.wait_for_everyone()
