"""Gives the best of n replies: reads the prompt once, forks the session n times, keeps the most probable reply.

The prompt is read once whatever n is; a fork costs one state, not the prompt again.

    python fork_many.py "The old king looked at the sea and" --n 8
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import palimpsest


def mean_logprob(result: palimpsest.GenerateResult) -> float:
    logprobs = [token.logprob for token in result.tokens if token.logprob is not None]
    return sum(logprobs) / max(len(logprobs), 1)


async def best_of(server: str, prompt: str, n: int, max_tokens: int) -> list[palimpsest.GenerateResult]:
    """The n replies, most probable first."""
    async with palimpsest.AsyncClient(server) as client, await client.create_session(ttl=600) as session:
        # All of the prompt but its last token is read once; each reply then begins with that token.
        *read, last = (await client.tokenize(prompt)).ids
        await session.generate_text(read, max_tokens=0)
        forks = await session.fork(n, ttl=60)
        try:
            generations = [
                fork.generate([last], max_tokens=max_tokens, logprobs=True, seed=seed)
                for seed, fork in enumerate(forks)
            ]
            results = await asyncio.gather(*(generation.result() for generation in generations))
        finally:
            await asyncio.gather(*(fork.delete() for fork in forks), return_exceptions=True)
    return sorted(results, key=mean_logprob, reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prompt")
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=40)
    arguments = parser.parse_args()
    try:
        results = asyncio.run(best_of(arguments.server, arguments.prompt, arguments.n, arguments.max_tokens))
    except palimpsest.PalimpsestError as error:
        print(error, file=sys.stderr)
        return 1
    for place, result in enumerate(results, 1):
        print(f"{place}. {mean_logprob(result):.3f} nats per token, seed {result.seed}")
        print(f"   {arguments.prompt}{result.text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
