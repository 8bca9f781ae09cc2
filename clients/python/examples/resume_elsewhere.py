"""Begins a text on one server and ends it on another: the state is downloaded from one and uploaded to the other.

Both servers must have the same model. With the same build and kind of processor the second server goes on with the
very bytes that the first would have given; the script checks that.

    python resume_elsewhere.py localhost:50051 localhost:50052
"""

from __future__ import annotations

import argparse
import sys

import palimpsest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--prompt", default="The ship left the harbour at dawn.")
    parser.add_argument("--max-tokens", type=int, default=40)
    arguments = parser.parse_args()
    seed, more = 7, arguments.max_tokens

    try:
        with palimpsest.Client(arguments.first) as here, palimpsest.Client(arguments.second) as there:
            with here.create_session() as session:
                begun = session.generate_text(arguments.prompt, max_tokens=more, seed=seed)
                snapshot = session.snapshot(ttl=600)
                data = here.download_snapshot(snapshot)
                stayed = session.generate(" Then", max_tokens=more, seed=seed, return_state_digest=True).result()
                here.delete_snapshot(snapshot)

            uploaded = there.upload_snapshot(data, ttl=600)
            with there.create_session(source=uploaded) as session:
                moved = session.generate(" Then", max_tokens=more, seed=seed, return_state_digest=True).result()
            there.delete_snapshot(uploaded)
    except palimpsest.PalimpsestError as error:
        print(error, file=sys.stderr)
        return 1

    print(f"{arguments.prompt}{begun}")
    print(f"--- {len(data)} bytes moved after {uploaded.position} tokens ---")
    print(f" Then{moved.text}")
    if moved.state_digest != stayed.state_digest:
        print("the servers' states differ: are they one build on one kind of processor?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
