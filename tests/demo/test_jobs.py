"""Jobs: told of as they go on, stopped between two steps."""

import itertools
import threading
import time

import pytest

from erasure.demo.jobs import Progress, Track, followed
from erasure.progress import StoppedError


def last(track: Track, work) -> list[Progress | str]:
    return list(followed(work, track))


def test_progress_comes_first_and_the_result_last() -> None:
    track = Track(threading.Event())

    def work() -> str:
        for at in range(3):
            track.report(Progress(done=at + 1, total=3))
            time.sleep(0.25)
        return "done"

    *progress, result = last(track, work)
    assert result == "done"
    assert all(isinstance(seen, Progress) for seen in progress)
    assert {(seen.stage, seen.total) for seen in progress if isinstance(seen, Progress)} >= {("fitting", 3)}


def test_a_page_gets_fewer_updates_than_a_job_reports_and_none_twice() -> None:
    track = Track(threading.Event())

    def work() -> None:
        for at in range(24):
            track.report(Progress(done=at + 1, total=24))
            time.sleep(0.05)
        time.sleep(1)

    *progress, _ = last(track, work)
    assert 2 <= len(progress) <= 5
    assert all(one != other for one, other in itertools.pairwise(progress))


def test_a_report_has_the_time_left_and_a_new_stage_counts_from_nothing() -> None:
    track = Track(threading.Event())
    track.report(Progress(16, 40, "images"))
    track.report(Progress(32, 40, "images"))
    assert (track.now.done, track.now.total) == (32, 40)
    assert track.now.note.endswith(" left")
    track.report(Progress(4, 8, "others"))
    assert (track.now.stage, track.now.done) == ("others", 4)


def test_a_stop_ends_the_work_at_its_next_step_and_gives_back_the_lock() -> None:
    stop, lock, done = threading.Event(), threading.RLock(), []
    track = Track(stop)

    def work() -> None:
        with track.holding(lock):
            for at in range(100):
                track.report(Progress(done=at + 1, total=100))
                done.append(at)
                time.sleep(0.05)

    following = followed(work, track)
    next(following)
    stop.set()
    with pytest.raises(StoppedError, match="nothing is half done"):
        list(following)
    assert len(done) < 20
    assert lock.acquire(timeout=1)


def test_the_time_of_a_job_counts_from_its_turn_and_ends_it() -> None:
    lock = threading.RLock()
    track = Track(threading.Event(), minutes=0.001)
    time.sleep(0.1)
    track.check()  # it has not begun
    with track.holding(lock):
        time.sleep(0.1)
        with pytest.raises(StoppedError, match=r"Stopped after 0\.001 minutes, the limit"):
            track.report(Progress(done=1, total=2))
    assert lock.acquire(blocking=False)
    with pytest.raises(StoppedError), track.holding(lock):  # no second time by holding it again
        pass


def test_who_waits_for_the_lock_can_be_stopped() -> None:
    lock, stop = threading.RLock(), threading.Event()
    track = Track(stop)

    def wait() -> None:
        with track.holding(lock):
            raise AssertionError("the lock was taken")

    with lock:
        following = followed(wait, track)
        next(following)
        stop.set()
        with pytest.raises(StoppedError):
            list(following)


def test_whoever_stops_listening_stops_the_work() -> None:
    stop = threading.Event()
    ended = threading.Event()

    def work() -> None:
        assert stop.wait(5)
        ended.set()

    following = followed(work, Track(stop))
    next(following)
    following.close()  # type: ignore[attr-defined]
    assert stop.is_set()
    assert ended.wait(5)


def test_an_error_of_the_work_is_raised_by_who_follows_it() -> None:
    with pytest.raises(ZeroDivisionError):
        last(Track(threading.Event()), lambda: 1 // 0)
