"""Processes that share servers and each see their own groups only: which server gets how many."""

import asyncio
from collections import Counter

import httpx
import pytest

from rollout.engines.base import EngineLostError
from rollout.engines.servers import pool as module
from rollout.engines.servers.client import Server, ServerLostError
from rollout.engines.servers.pool import Pool
from rollout.engines.servers.settings import ServerSettings

URLS = [f"http://server-{number}" for number in range(8)]
GROUPS = 4  # of each process in a rollout


def shares(processes: int, rollouts: int, *, slow: str = "") -> list[Counter[str]]:
    """Groups per server in each rollout. A server's pace falls with what all processes give it, and by 4 if `slow`."""

    async def simulate() -> list[Counter[str]]:
        async with httpx.AsyncClient() as client:
            settings = ServerSettings()
            pools = [
                Pool([Server(url, client, settings) for url in URLS], settings, 64, rank=rank, processes=processes)
                for rank in range(processes)
            ]
            found = []
            for _ in range(rollouts):
                taken = Counter(dict.fromkeys(URLS, 0))

                async def work(server: Server, taken: Counter[str] = taken) -> None:
                    taken[server.url] += 1
                    await asyncio.sleep(0.01)  # until all have their groups
                    server.measured((1 + taken[server.url] / 32) * (4 if server.url == slow else 1))

                for pool in pools:
                    pool.remeasure()
                await asyncio.gather(*(pool.run(16, 1000, work) for pool in pools for _ in range(GROUPS)))
                found.append(taken)
            return found

    return asyncio.run(simulate())


@pytest.mark.parametrize(("processes", "each"), [(16, 8), (2, 1), (4, 2)])
def test_processes_begin_with_different_servers(processes: int, each: int) -> None:
    assert shares(processes, 1) == [Counter(dict.fromkeys(URLS, each))]


def test_every_server_has_its_share_in_later_rollouts_too() -> None:
    for taken in shares(16, 6):
        assert max(taken.values()) <= 2 * min(taken.values()), taken


def test_a_server_that_is_slow_for_all_gets_less_of_all() -> None:
    first, *later = shares(16, 6, slow=URLS[3])
    assert first[URLS[3]] == 8
    assert all(taken[URLS[3]] <= 2 for taken in later), later


def test_a_slow_server_gets_less() -> None:
    """Eight equal groups, and room for all: 4/5 of them go to the server that is four times as fast."""

    async def share() -> int:
        async with httpx.AsyncClient() as client:
            settings = ServerSettings()
            slow, fast = (Server(url, client, settings) for url in URLS[:2])
            slow.pace, fast.pace = 0.4, 0.1
            pool_of_two = Pool([slow, fast], settings, max_num_seqs=100)
            taken: list[Server] = []

            async def work(server: Server) -> None:
                taken.append(server)
                await asyncio.sleep(0.01)

            await asyncio.gather(*(pool_of_two.run(2, 10, work) for _ in range(10)))
            pool_of_two.remeasure()
            assert (slow.pace, fast.pace) == (pytest.approx(0.325), 0.1)
            return taken.count(slow)

    assert asyncio.run(share()) == 2


def test_a_group_that_fails_everywhere_ends_the_run_instead_of_going_round_for_ever() -> None:
    """It fails over `patience` seconds: servers that all come back at once are not given up after quick errors."""

    async def sample() -> list[str]:
        async with httpx.AsyncClient() as client:
            settings = ServerSettings(patience=1)
            pool = Pool([Server(url, client, settings) for url in URLS[:2]], settings, 64)
            tried: list[str] = []

            async def work(server: Server) -> None:
                tried.append(server.url)
                await asyncio.sleep(1.1 if len(tried) == 4 else 0)
                for other in pool.servers:  # each answers again at once
                    if other is not server:
                        await pool.take_back(other)
                raise ServerLostError("no reply within 3600 s")

            with pytest.raises(EngineLostError, match=r"16 sequences failed 4 times, .* no reply .*=3600 s"):
                await pool.run(16, 1000, work)
            return tried

    assert asyncio.run(sample()) == [URLS[0], URLS[1], URLS[0], URLS[1]]


def test_patience_counts_from_the_first_attempt_that_failed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_INTERVAL", 0.05)

    async def attempts() -> int:
        async with httpx.AsyncClient() as client:
            settings = ServerSettings(patience=0.2)
            pool = Pool([Server(URLS[0], client, settings)], settings, 64)
            found = 0

            async def work(server: Server) -> None:
                nonlocal found
                found += 1
                if found == 1:
                    pool.leave_out(server, "it took longer than patience to fail")
                    await asyncio.sleep(0.3)
                else:
                    await pool.take_back(server)

            await pool.insist(work)
            return found

    assert asyncio.run(attempts()) == 2
