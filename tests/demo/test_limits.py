"""What visitors may send."""

import secrets
import threading
import time
from unittest.mock import Mock

import gradio as gr
import httpx
import pytest

from erasure.demo import limits
from erasure.demo.api import Api
from erasure.demo.desk import Desk
from erasure.demo.forms import offered, summary
from erasure.demo.jobs import Track
from erasure.demo.server.job_limit import limit_jobs
from erasure.demo.sessions import Session, Sessions
from erasure.demo.studio import Studio
from erasure.erasers import eraser_class, eraser_names
from erasure.errors import InputError

TOO_LARGE = (1e308, 10**12, 10**5000, float("inf"), float("-inf"), float("nan"))


def test_names_lose_blanks_and_doubles() -> None:
    assert limits.names("concepts", [" cat ", "cat", "", "a  dog"]) == ["cat", "a dog"]
    assert limits.names("concepts", None) == []


@pytest.mark.parametrize("given", ["cat", 3, [1], {"a": 1}, ["x" * 81], [str(at) for at in range(9)]])
def test_other_names_are_refused_in_a_line(given: object) -> None:
    with pytest.raises(InputError, match=r"^concepts: expected .*, got .*\. \w") as error:
        limits.names("concepts", given)
    assert "\n" not in str(error.value)


def test_prompts_are_lines_or_a_list() -> None:
    assert limits.prompts("a cat\n\n a  dog \na cat") == ["a cat", "a dog"]
    assert limits.prompts(["🐈", "a dog"]) == ["🐈", "a dog"]
    assert limits.prompts(["caf\u00e9", "cafe\u0301"]) == ["caf\u00e9"]


@pytest.mark.parametrize("given", ["", "  \n", None, 3, [3], "x" * 1001, "\n".join("abcdefg")])
def test_other_prompts_are_refused(given: object) -> None:
    with pytest.raises(InputError, match=r"^prompts?: expected .*, got "):
        limits.prompts(given)


def test_a_number_of_pictures_is_the_most() -> None:
    assert limits.pairs("a\nb", "0-2") == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]
    with pytest.raises(InputError, match="at most 24 images, got 32"):
        limits.pairs("a\nb\nc\nd", "0-7")
    for seeds in ("0-8", "0-99999999999", "-1", "a", "", "1-0-2", "²"):
        with pytest.raises(InputError, match=r"^seeds: expected"):
            limits.pairs("a", seeds)


@pytest.mark.parametrize("given", [None, "3", True, float("nan"), float("inf"), 0, 101, 2.5])
def test_steps_are_a_whole_number_in_a_range(given: object) -> None:
    assert limits.whole("steps", 20.0, 1, 100) == 20
    with pytest.raises(InputError, match=r"^steps: expected"):
        limits.whole("steps", given, 1, 100)


@pytest.mark.parametrize("method", eraser_names())
def test_no_setting_from_a_browser_is_a_text_that_could_name_a_file(method: str) -> None:
    names = [setting.name for setting in offered(method, "tinyworld")]
    assert {"number", "whole", "choice", "switch"} >= {setting.kind for setting in offered(method, "tinyworld")}
    assert "captions" not in names
    with pytest.raises(InputError, match=r"^settings: expected one of"):
        limits.settings({"captions": "/etc/passwd"}, offered(method, "tinyworld"))


@pytest.mark.parametrize("method", eraser_names())
@pytest.mark.parametrize("model", ["tinyworld", "a/model"])
def test_every_number_has_a_range_that_holds_its_default(method: str, model: str) -> None:
    settings = offered(method, model)
    for setting in settings:
        if setting.kind in ("choice", "switch"):
            assert setting.low is None
            continue
        assert setting.low is not None
        assert setting.high is not None
        assert setting.value is None or setting.low <= float(setting.value) <= setting.high
        assert limits.settings({setting.name: setting.value}, settings) == {setting.name: setting.value}
        if setting.kind == "whole":  # a browser's numbers may be floats; a broken one is the eraser's to refuse
            assert type(limits.settings({setting.name: float(setting.high)}, settings)[setting.name]) is int
        line = rf"^settings\.{setting.name}: expected a number from .*, got "
        for value in (*TOO_LARGE, True, "1", [1], setting.low - 1):
            with pytest.raises(InputError, match=line) as error:
                limits.settings({setting.name: value}, settings)
            assert "\n" not in str(error.value)


def test_the_range_of_a_form_is_within_that_of_the_field() -> None:
    settings = {setting.name: setting for setting in offered("duge", "tinyworld")}
    ranges = {name: (settings[name].low, settings[name].high) for name in ("max_similarity", "batch_size", "rank")}
    assert ranges == {"max_similarity": (-1, 1), "batch_size": (1, 100), "rank": (1, 160)}


@pytest.mark.parametrize("method", eraser_names())
def test_a_form_starts_with_its_main_settings_and_says_what_each_does(method: str) -> None:
    found = offered(method, "tinyworld")
    main = eraser_class(method).main
    assert tuple(setting.name for setting in found[: len(main)]) == main
    assert all(setting.main == (setting.name in main) for setting in found)
    assert all(setting.about for setting in found)
    assert summary(method).endswith(".")


def test_a_form_starts_from_the_tiny_worlds_settings_on_the_tiny_world_alone() -> None:
    steps = {model: {s.name: s.value for s in offered("esd", model)}["steps"] for model in ("tinyworld", "a/b")}
    assert steps == {"tinyworld": 150, "a/b": 1000}


def test_a_session_is_found_by_its_key_and_its_folder_tells_nothing_of_it() -> None:
    sessions = Sessions()
    one, other = sessions.of("visitor-../../etc"), sessions.of("b")
    assert sessions.of("visitor-../../etc") is one
    assert one.folder != other.folder
    assert one.folder.parent == other.folder.parent == sessions.folder
    assert one.ledger_folder.is_relative_to(one.folder)
    for key in ("", "x" * 101):
        with pytest.raises(InputError, match=r"^session: expected"):
            sessions.of(key)
    sessions.close()


def test_whoever_was_away_for_long_is_forgotten_with_the_folder_but_not_while_a_job_runs() -> None:
    sessions = Sessions()
    gone, busy = sessions.of("gone"), sessions.of("busy")
    for session in (gone, busy):
        session.folder.mkdir()
        session.seen -= 3 * 3600
    busy.jobs = 1
    sessions.of("new")
    assert not gone.folder.exists()
    assert sessions.of("busy") is busy
    assert sessions.of("gone") is not gone
    sessions.close()
    assert not busy.folder.exists()


def test_the_folder_of_a_client_that_leaves_stays_until_its_job_is_done() -> None:
    sessions = Sessions()
    session = sessions.of("api-a")
    session.folder.mkdir()
    with session.working():
        sessions.end("api-a")
        assert session.folder.exists()
        assert sessions.of("api-a") is session
    sessions.end("api-a")
    assert not session.folder.exists()
    sessions.close()


def test_leaving_a_page_ends_its_jobs_and_no_others() -> None:
    sessions = Sessions()
    session = sessions.of("a")
    mine, other = session.stop("page 1", "erase"), session.stop("page 2", "erase")
    sessions.leave("page 1")
    assert mine.is_set()
    assert not other.is_set()
    sessions.close()


def test_a_job_that_starts_as_its_client_leaves_ends_at_once() -> None:
    """A killed client's connection may close before the job's thread, which the queue has started, has begun."""
    sessions = Sessions()
    api = Api(Desk(studio=Mock(spec=Studio), sessions=sessions, key=Mock(spec=gr.BrowserState)))

    def steps(page: str) -> int:
        def work(session: Session, track: Track) -> int:
            track.check()
            return 1

        return api._run(Mock(spec=gr.Request, session_hash=page), "erase", work)

    assert steps("a") == 1
    sessions.leave("a")
    with pytest.raises(gr.Error, match="Cancelled"):
        steps("a")
    assert steps("b") == 1
    sessions.close()


def test_one_visitor_cannot_fill_the_queue_and_light_calls_are_not_counted() -> None:
    hold = threading.Event()
    with gr.Blocks(analytics_enabled=False) as page:
        gr.api(lambda: hold.wait(60), api_name="job", concurrency_id="model", concurrency_limit=1)
        gr.api(lambda: 1, api_name="light")
    page.queue(max_size=20, api_open=False)
    limit_jobs(page, "model", 2)
    _, address, _ = page.launch(quiet=True, prevent_thread_lock=True, ssr_mode=False)

    def send(index: int, visitor: str) -> tuple[int, str]:
        body = {"data": [], "fn_index": index, "session_hash": secrets.token_hex(5)}  # another session each time
        reply = httpx.post(f"{address}gradio_api/queue/join", json=body, headers={"X-Forwarded-For": visitor})
        return reply.status_code, reply.text

    try:
        assert [send(0, "10.0.0.1")[0] for _ in range(2)] == [200, 200]
        status, text = send(0, "10.0.0.1")
        assert status == 503
        assert "queue: expected at most 2 jobs of one visitor at once, got another. Wait until one is done." in text
        assert send(1, "10.0.0.1")[0] == 200
        assert send(0, "10.0.0.2")[0] == 200
        status, text = send(99, "10.0.0.2")
        assert (status, "queue: expected a function of this page, got 99" in text) == (400, True)
        hold.set()
        end = time.monotonic() + 60
        while send(0, "10.0.0.1")[0] == 503:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        hold.set()
        page.close()
