"""The worker pool: items that hang, crash, fail or exceed a limit, and the end of the workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rewards.runner.child import uncounted
from rewards.runner.workers import WorkerError, WorkerPool

ROOT = Path(__file__).parents[3]


def task(item):
    """The target function."""
    match item:
        case "loop":
            while True:
                pass
        case "import":
            with uncounted():
                busy_for(2.5)
        case "memory":
            return len(bytearray(4 << 30))
        case "abort":
            os.abort()
        case "fault":
            raise IndexError("a bug")
        case "pid":
            return os.getpid()
        case "threads":
            return os.environ["OMP_NUM_THREADS"]
        case ("sleep", seconds):
            time.sleep(seconds)
    return item


def busy_for(seconds):
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def adder(number):
    """A target with a setup."""
    return lambda item: (number + item, os.getpid())


@pytest.fixture
def pool():
    pool = WorkerPool(f"{__name__}:task", cpu_seconds=1, memory_mb=1024, max_workers=2)
    yield pool
    pool.close()


def test_a_bad_item_affects_no_other(pool, caplog):
    results = pool.map([1, "loop", 2, "memory", 3, "abort", 4, "fault", 5])
    assert [r for r in results if not isinstance(r, WorkerError)] == [1, 2, 3, 4, 5]
    errors = [r for r in results if isinstance(r, WorkerError)]
    assert [error.kind for error in errors] == ["time", "memory", "died", "fault"]
    reasons = [error.reason for error in errors]
    assert reasons[:3] == ["out of time", "out of memory", "ended the worker (exit code -6)"]
    assert reasons[3] == "fault: IndexError: a bug ('fault')"
    assert "IndexError" in caplog.text and 'raise IndexError("a bug")' in str(errors[3].__cause__)


def test_cpu_time_counts_and_waiting_does_not(pool):
    assert pool.map([("sleep", 2.5)]) == [("sleep", 2.5)]


def test_an_import_does_not_count_against_the_limit_but_the_rest_does(pool):
    first, second = pool.map(["import", "loop"])
    assert (first, second.kind) == ("import", "time")


def test_an_item_that_exceeds_the_timeout_loses_its_worker_and_no_other_item():
    pool = WorkerPool(f"{__name__}:task", max_workers=1, timeout=0.5)
    [first] = pool.map(["pid"])
    started = time.monotonic()
    *results, last = pool.map([1, ("sleep", 60), 2, "pid"])
    assert results[::2] == [1, 2] and (results[1].kind, results[1].reason) == ("time", "out of time")
    assert last != first and not is_running(first)
    assert time.monotonic() - started < 20
    pool.close()


@pytest.mark.parametrize(("given", "workers", "expected"), [("5", 2, "2"), ("2", 4, "1"), ("6,2", 1, "6")])
def test_workers_share_the_threads_of_this_process(monkeypatch, given, workers, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    pool = WorkerPool(f"{__name__}:task", max_workers=workers)
    assert pool.map(["threads"]) == [expected]
    pool.close()


def test_the_setup_runs_once_per_worker_and_fast_items_share_it():
    pool = WorkerPool(f"{__name__}:adder", setup=40, max_workers=1)
    results = pool.map(range(50))
    assert [value for value, _ in results] == list(range(40, 90))
    assert {pid for _, pid in results} == set(pool.pids())
    pool.close()


def hanging(setup):
    """A target that is never loaded."""
    time.sleep(600)


def test_a_worker_that_hangs_while_loading_ends_at_the_limit(monkeypatch):
    monkeypatch.setattr("rewards.runner.process.START_SECONDS", 1.0)
    pool = WorkerPool(f"{__name__}:hanging", setup=1, max_workers=1)
    [failure] = pool.map([1])
    assert failure.kind == "time" and pool.pids() == []
    pool.close()


def test_a_worker_killed_from_outside_is_replaced(pool):
    [first] = pool.map(["pid"])
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    [second] = pool.map(["pid"])
    assert second != first and pool.pids() == [second]


def test_an_item_whose_worker_is_killed_from_outside_is_retried(pool):
    def kill():
        while not pool.pids():
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(pool.pids()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert pool.map([("sleep", 1.5)]) == [("sleep", 1.5)]
    killer.join()


def test_an_item_that_cannot_be_sent_is_an_error_and_the_worker_stays_usable(pool):
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        pool.map([threading.Lock()])
    assert pool.map([1]) == [1]


def test_a_pool_serves_several_threads_at_once(pool):
    results = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: pool.map([n] * 5)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [n] * 5 for n in range(4)}
    assert len(pool.pids()) <= 2


def test_a_forked_child_starts_workers_of_its_own(pool):
    [ours] = pool.map(["pid"])
    child = os.fork()
    if child == 0:
        [theirs] = pool.map(["pid"])
        pool.close()
        os._exit(int(theirs == ours or not is_running(ours)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.map(["pid"]) == [ours]


def test_close_ends_the_workers_and_fails_what_is_left(pool):
    pids = pool.map(["pid"])
    running, queued = pool.submit(("sleep", 600)), [pool.submit(("sleep", 600)) for _ in range(3)]
    time.sleep(0.1)
    pool.close()
    for future in (running, *queued, pool.submit(1)):
        error = future.exception(timeout=5)
        assert isinstance(error, WorkerError) and error.kind == "closed"
    assert pool.pids() == [] and not any(map(is_running, pids))


def test_a_busy_worker_ends_with_a_killed_parent():
    """Even if another process holds the parent's end of the pipe, so that the worker reads no EOF."""
    program = (
        "import os, time\n"
        "from rewards.runner.workers import WorkerPool\n"
        "pool = WorkerPool('tests.rewards.runner.test_workers:task', max_workers=1)\n"
        "[pid] = pool.map(['pid'])\n"
        "if (holder := os.fork()) == 0: time.sleep(600)\n"
        "pool.submit(('sleep', 600))\n"
        "print(pid, holder, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    pid, holder = map(int, parent.stdout.readline().split())
    try:
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while is_running(pid):
            assert time.monotonic() < deadline, "the worker outlived its parent"
            time.sleep(0.02)
    finally:
        os.kill(holder, signal.SIGKILL)
        parent.stdout.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
