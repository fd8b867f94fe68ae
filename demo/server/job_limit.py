"""Limit of the jobs of one visitor in Gradio's queue, which itself limits those of all together alone."""

from typing import Any, Literal

from fastapi import Request
from gradio import Blocks
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event
from gradio.route_utils import get_fn

State = Literal["success", "error", "queue_full", "validator_error"]


def limit_jobs(page: Blocks, kind: str, most: int) -> None:
    """Refuse a job of a visitor of whom so many wait or run; a visitor is an address, as a client names its sessions.

    Args:
        page: Page whose queue is set up.
        kind: The `concurrency_id` of the events that are jobs; others are quick.
        most: Largest number of jobs of one visitor.
    """
    queue = page._queue
    push = queue.push

    def jobs_of(visitor: str) -> int:
        waiting = queue.event_queue_per_concurrency_id.get(kind)
        events: list[Event] = [] if waiting is None else list(waiting.queue)
        events += [event for job in queue.active_jobs if job for event in job if event.concurrency_id == kind]
        return sum(_visitor(event.request) == visitor for event in events)

    async def limited(
        body: PredictBodyInternal, request: Request, username: str | None
    ) -> tuple[bool, str | list[dict[str, Any]], State]:
        try:
            is_job = body.fn_index is not None and get_fn(queue.blocks, None, body).concurrency_id == kind
        except KeyError:
            return False, f"queue: expected a function of this page, got {body.fn_index}. Reload the page.", "error"
        if is_job and jobs_of(_visitor(request)) >= most:
            text = f"queue: expected at most {most} jobs of one visitor at once, got another. Wait until one is done."
            return False, text, "queue_full"
        return await push(body, request, username)

    queue.push = limited  # type: ignore[method-assign]


def _visitor(request: Request) -> str:
    return "" if request.client is None else request.client.host
