"""Worker processes that may be lost: to time, to memory, to a crash, to a fault; and what it costs."""

import os
import signal
import threading
import time

import pytest

from rewards.runner.killable import KillablePool, Killed


def task(item):
    """What the workers run here."""
    match item:
        case "loop":
            while True:
                pass
        case "memory":
            return len(bytearray(4 << 30))
        case "abort":
            os.abort()
        case "fault":
            raise IndexError("of ours")
        case "pid":
            return os.getpid()
        case ("sleep", seconds):
            time.sleep(seconds)
    return item


@pytest.fixture
def pool():
    pool = KillablePool("tests.rewards.runner.test_killable:task", cpu_seconds=1, memory_mb=1024, max_workers=2)
    yield pool
    pool.close()


def test_a_bad_item_costs_itself_alone(pool, caplog):
    results = pool.map([1, "loop", 2, "memory", 3, "abort", 4, "fault", 5])
    assert [r for r in results if not isinstance(r, Killed)] == [1, 2, 3, 4, 5]
    reasons = [r.reason for r in results if isinstance(r, Killed)]
    assert reasons[:3] == ["out of time", "out of memory", "ended the worker (exit code -6)"]
    assert reasons[3].startswith("fault: IndexError: of ours")
    assert "IndexError" in caplog.text  # said, not swallowed


def test_the_time_limit_counts_computing_and_not_waiting(pool):
    assert pool.map([("sleep", 2.5)]) == [("sleep", 2.5)]


def test_a_worker_killed_from_outside_is_replaced(pool):
    [first] = pool.map(["pid"])
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    [second] = pool.map(["pid"])
    assert second != first and pool.pids() == [second]


def test_an_item_whose_worker_is_killed_from_outside_is_tried_again(pool):
    def kill():
        while not pool.pids():
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(pool.pids()[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert pool.map([("sleep", 1.5)]) == [("sleep", 1.5)]
    killer.join()


def test_workers_end_with_the_pool(pool):
    pool.map([1, 2, 3])
    pids = pool.pids()
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
