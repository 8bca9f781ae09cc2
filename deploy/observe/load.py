"""A load with something of everything: streams, sessions that are forked and saved, callers who leave, and mistakes.

Runs until it is told to stop. Each kind of visitor comes again and again, in as many copies as the table below says.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

import palimpsest

OPENINGS = (
    "It was a dark and stormy night, and the old house on the hill",
    "The captain looked at the sea and",
    "She opened the letter, read it twice, and",
    "In the beginning there was nothing but",
    "My dear friend, I write to you from",
)
Visitor = Callable[[palimpsest.AsyncClient, random.Random], Awaitable[None]]


async def pause(rng: random.Random, mean: float) -> None:
    """What a caller does between two requests."""
    await asyncio.sleep(rng.expovariate(1 / mean))


async def reader(client: palimpsest.AsyncClient, rng: random.Random) -> None:
    """Has a story told, from an opening of any length."""
    prompt = " ".join(rng.choices(OPENINGS, k=rng.randint(1, 12)))
    async with client.generate(prompt, max_tokens=rng.randint(20, 160), temperature=0.8) as generation:
        async for _ in generation:
            pass
    await pause(rng, 0.3)


async def talker(client: palimpsest.AsyncClient, rng: random.Random) -> None:
    """Talks on a session, tries two ways to go on, and keeps the better one for a while."""
    session = await client.create_session(ttl=60)
    for _ in range(rng.randint(1, 4)):
        await session.generate_text(rng.choice(OPENINGS), max_tokens=rng.randint(10, 60), temperature=0.8)
        await pause(rng, 0.5)
    for branch in await session.fork(2):
        await branch.generate_text(" and then", max_tokens=20, temperature=1.0)
    await session.snapshot(ttl=30)
    await session.delete()


async def leaver(client: palimpsest.AsyncClient, rng: random.Random) -> None:
    """Asks for a long story and leaves after a few words."""
    async with client.generate(rng.choice(OPENINGS), max_tokens=2000, ignore_end_of_text=True) as generation:
        async for _ in generation:
            if len(generation.text) > 40:
                break
    await pause(rng, 1.0)


async def scorer(client: palimpsest.AsyncClient, rng: random.Random) -> None:
    """Scores a text."""
    await client.score(" ".join(rng.choices(OPENINGS, k=8)))
    await pause(rng, 2.0)


async def hurried(client: palimpsest.AsyncClient, rng: random.Random) -> None:
    """Gives too little time."""
    await client.generate_text(rng.choice(OPENINGS), max_tokens=2000, ignore_end_of_text=True, timeout=0.05)


async def mistaken(client: palimpsest.AsyncClient, rng: random.Random) -> None:
    """Asks for what there is not."""
    if rng.random() < 0.5:
        await client.generate_text("Once", temperature=-1.0)
    else:
        await client.get_session("no-such-session")


VISITORS: dict[Visitor, int] = {reader: 10, talker: 3, leaver: 1, scorer: 1, hurried: 1, mistaken: 1}
# What these two are there for.
EXPECTED: dict[Visitor, tuple[type[palimpsest.PalimpsestError], ...]] = {
    hurried: (palimpsest.DeadlineExceeded,),
    mistaken: (palimpsest.InvalidArgument, palimpsest.NotFound),
}


async def come_again(visitor: Visitor, client: palimpsest.AsyncClient, rng: random.Random) -> None:
    """One visitor, over and over; a full server or a restart is waited out."""
    while True:
        try:
            await visitor(client, rng)
        except EXPECTED.get(visitor, ()):
            await pause(rng, 2.0)
        except (palimpsest.ResourceExhausted, palimpsest.Unavailable):
            await asyncio.sleep(1.0)


async def main() -> None:
    """Runs every visitor until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051", help="host:port (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with palimpsest.AsyncClient(arguments.server) as client:
        tasks: list[asyncio.Future[object]] = [asyncio.ensure_future(stop.wait())]
        for visitor, copies in VISITORS.items():
            for i in range(copies):
                rng = random.Random(f"{arguments.seed} {visitor.__name__} {i}")
                tasks.append(asyncio.ensure_future(come_again(visitor, client, rng)))
        # Only the first ends by itself; another one that ends has failed, and says how.
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()


if __name__ == "__main__":
    asyncio.run(main())
