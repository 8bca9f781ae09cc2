"""Prints a reply as it comes, and then its figures.

python stream.py "Once upon a time" --server localhost:50051
"""

from __future__ import annotations

import argparse
import sys

import palimpsest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prompt")
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    arguments = parser.parse_args()

    with palimpsest.Client(arguments.server) as client:
        generation = client.generate(
            arguments.prompt, max_tokens=arguments.max_tokens, temperature=arguments.temperature
        )
        print(arguments.prompt, end="", flush=True)
        try:
            for chunk in generation:
                print(chunk.text, end="", flush=True)
        except KeyboardInterrupt:
            generation.close()
            print()
            return 130
        except palimpsest.PalimpsestError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
        usage = generation.result().usage
    decode_seconds = usage.total_seconds - usage.time_to_first_token_seconds
    rate = (usage.generated_tokens - 1) / decode_seconds if decode_seconds > 0 else 0.0
    print(
        f"\n\n{usage.generated_tokens} tokens; first after {usage.time_to_first_token_seconds * 1e3:.0f} ms, "
        f"then {rate:.0f} a second",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
