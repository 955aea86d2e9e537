"""Which server gets the next group, and what happens when a server fails.

A group goes to the server that would be done with it first, among those that have room: outstanding tokens times the
time that a token took there lately, so a slow server gets less. Every process sees only its own groups: so that not all
crowd the same servers, each begins with another one, and small differences of pace count as none.

A server that does not answer is left out and its groups go to the others. It is asked again every few seconds, and
takes part again once it answers and has the right weights; one that has missed an update gets them with the next.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rollout.engines.base import EngineLostError
from rollout.engines.servers.client import Server, ServerLostError
from rollout.engines.servers.settings import ServerSettings

PROBE_INTERVAL = 2.0  # seconds between two looks at each server
MOST_FAILURES = 3  # of one group, over `patience` seconds: more, and the servers are not the cause
EQUAL_PACE = 1.5  # times the fastest: what a few more sequences of other processes cost a server

T = TypeVar("T")


class Pool:
    """The servers, as one process sees them. All methods run in the engine's event loop.

    servers: in an order that all processes have; `rank` of `processes` says where this one begins.
    revive: if the process of the server with this URL has ended, starts it again and says why it ended; else "".
    label: that of the weights a server must have to come back; empty: any.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        settings: ServerSettings,
        max_num_seqs: int,
        revive: Callable[[str], str] | None = None,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        first = rank * len(servers) // processes
        self.servers, self.label = [*servers[first:], *servers[:first]], ""
        self._revive = revive
        self._settings, self._max_num_seqs = settings, max_num_seqs
        self._changed = asyncio.Condition()

    @property
    def alive(self) -> list[Server]:
        """The servers that take part."""
        return [server for server in self.servers if not server.lost]

    async def run(self, sequences: int, tokens: int, work: Callable[[Server], Awaitable[T]]) -> T:
        """The result of `work` on the first server that does it.

        Raises:
            EngineLostError: no server is left, for longer than settings.patience, or the work itself fails everywhere.
        """
        failures, first_failure = 0, 0.0
        while True:
            server = await self._with_room(sequences, tokens)
            server.sequences += sequences
            server.tokens += tokens
            task = asyncio.ensure_future(work(server))
            server.tasks.add(task)
            try:
                return await task
            except ServerLostError as error:
                self.leave_out(server, str(error))
                failures, now = failures + 1, time.monotonic()
                first_failure = first_failure or now
                often = failures >= max(MOST_FAILURES, len(self.servers) + 1)
                if often and now - first_failure >= self._settings.patience:  # all may be down for a moment
                    raise EngineLostError(
                        f"a group of {sequences} sequences failed {failures} times, at last because {error}. If it "
                        f"takes longer than rollout.servers.request_timeout={self._settings.request_timeout:g} s, "
                        "raise that, or lower rollout.max_completion_length"
                    ) from error
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is None or current.cancelling():  # not by leave_out
                    raise
            finally:
                server.tasks.discard(task)
                server.sequences -= sequences
                server.tokens -= tokens
                async with self._changed:
                    self._changed.notify_all()

    async def _with_room(self, sequences: int, tokens: int) -> Server:
        def with_room() -> list[Server]:
            most = max(self._max_num_seqs, sequences)
            return [server for server in self.alive if server.sequences + sequences <= most]

        async with self._changed:
            while not (free := with_room()):
                if self.alive:
                    await self._changed.wait()
                    continue
                try:
                    async with asyncio.timeout(self._settings.patience):
                        await self._changed.wait_for(lambda: bool(self.alive))
                except TimeoutError:
                    raise EngineLostError(self.obituary()) from None
        fastest = self._fastest()

        def seconds(server: Server) -> float:
            return (server.tokens + tokens) * (server.pace if server.pace > EQUAL_PACE * fastest else fastest)

        return min(free, key=seconds)  # the first of equals

    def _fastest(self) -> float:
        return min((server.pace for server in self.servers if server.pace), default=1.0)

    def remeasure(self) -> None:
        """Trust what was measured of slow servers a little less, so that they get work and are measured again."""
        fastest = self._fastest()
        for server in self.servers:
            server.pace = (3 * server.pace + fastest) / 4 if server.pace else 0.0

    def obituary(self) -> str:
        """Why no server is left."""
        return "no server is left: " + "; ".join(server.lost for server in self.servers)

    def leave_out(self, server: Server, reason: str) -> None:
        """Give the server no more work; what it has goes to the others."""
        if server.lost:
            return
        server.lost = reason
        print(f"warning: server {server.url} is left out: {reason}", file=sys.stderr, flush=True)
        for task in list(server.tasks):
            task.cancel()

    def look_after(self, server: Server) -> None:
        """If the process of a server that was started here has ended, start it again and keep the reason."""
        if server.lost and self._revive and (ended := self._revive(server.url)):
            server.lost = f"{server.url} {ended}"

    async def take_back(self, server: Server) -> None:
        """Give the server work again."""
        if server.lost:
            server.lost = ""
            print(f"server {server.url} takes part again", file=sys.stderr, flush=True)
        async with self._changed:
            self._changed.notify_all()

    async def insist(self, work: Callable[[Server], Awaitable[None]]) -> None:
        """Do `work` on all servers, and again on all while none is left.

        Raises:
            EngineLostError: no server is left, for longer than settings.patience.
        """
        await asyncio.gather(*map(work, self.servers))
        deadline = time.monotonic() + self._settings.patience
        while not self.alive:
            if time.monotonic() > deadline:
                raise EngineLostError(self.obituary())
            await asyncio.sleep(PROBE_INTERVAL)
            await asyncio.gather(*map(work, self.servers))

    async def watch(self) -> None:
        """Look at every server until cancelled: leave out those that hang, take back those that have returned."""
        async with asyncio.TaskGroup() as watchers:
            for server in self.servers:
                watchers.create_task(self._watch(server))

    async def _watch(self, server: Server) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL)
            try:
                await server.check_health()
                if server.lost and await server.samples_with(self.label):
                    await self.take_back(server)
            except (ServerLostError, ValueError) as error:
                self.leave_out(server, str(error))
            self.look_after(server)
