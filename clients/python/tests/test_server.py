"""Both clients against the real server.

PALIMPSEST_SERVER_BINARY is the palimpsest-server to start, PALIMPSEST_TEST_MODEL the folder of the checkpoint that it
serves. Without them these tests fail: leave the file out if there is no server.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import Connect

import palimpsest

PROMPT = "The quick brown fox jumps over the lazy dog, and "
HERE = pathlib.Path(__file__).parent


@contextmanager
def running_server(folder: pathlib.Path) -> Iterator[str]:
    """A server on a port of its own, with its log in the folder; ends with it."""
    port_file = folder / "port"
    log_file = folder / "log"
    command = [
        os.environ["PALIMPSEST_SERVER_BINARY"],
        f"--model=test={os.environ['PALIMPSEST_TEST_MODEL']}",
        "--host=127.0.0.1",
        "--port=0",
        f"--port_file={port_file}",
        "--metrics_address=",
        "--slots=8",
    ]
    with open(log_file, "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + 120
        while not port_file.exists() or not port_file.read_text().endswith("\n"):
            if process.poll() is not None or time.monotonic() > give_up:
                pytest.fail(f"the server did not start: {' '.join(command)}\n{log_file.read_text()}")
            time.sleep(0.05)
        target = f"127.0.0.1:{port_file.read_text().split()[0]}"
        with palimpsest.Client(target) as client:
            client.wait_until_serving(timeout=120)
        yield target
    finally:
        process.terminate()
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
    assert code == 0, f"the server ended with {code}:\n{log_file.read_text()}"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("first")) as address:
        yield address


@pytest.fixture(scope="module")
def other_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("second")) as address:
        yield address


@pytest.fixture
def client(connect: Connect, target: str) -> Any:
    return connect(target)


def test_the_model_is_there_and_healthy(client: Any) -> None:
    (model,) = client.list_models()
    assert model.condition is palimpsest.ModelCondition.READY
    assert model.slots == 8 and model.state_bytes > 0 and model.vocabulary_size > 0
    assert re.fullmatch("[0-9a-f]{64}", model.fingerprint)
    assert client.get_model(model) == model
    assert client.health() is palimpsest.Health.SERVING
    assert client.health("palimpsest.v1.GenerationService") is palimpsest.Health.SERVING
    with pytest.raises(palimpsest.NotFound):
        client.health("no.such.Service")


def log_line(folder: pathlib.Path, trace_id: str) -> dict[str, Any]:
    """What the server logged of the call with this trace id: just after the caller had its answer."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        for line in (folder / "log").read_text().splitlines():
            if f'"trace_id":"{trace_id}"' in line:
                fields: dict[str, Any] = json.loads(line)
                return fields
        time.sleep(0.01)
    pytest.fail(f"no call with the trace {trace_id} in the log")


def test_the_log_joins_the_callers_trace(connect: Connect, tmp_path: pathlib.Path) -> None:
    with running_server(tmp_path) as target:
        client = connect(target)
        with palimpsest.trace_context("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "congo=t61"):
            client.generate_text(PROMPT, max_tokens=3, ignore_end_of_text=True)
        line = log_line(tmp_path, "4bf92f3577b34da6a3ce929d0e0e4736")
    assert (line["parent_span_id"], line["trace_state"], line["generated_tokens"]) == (
        "00f067aa0ba902b7",
        "congo=t61",
        3,
    )
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"]) and line["span_id"] != line["parent_span_id"]


def test_the_chunks_make_the_result_and_the_seed_makes_it_again(client: Any) -> None:
    stream = client.generate(PROMPT, max_tokens=24, ignore_end_of_text=True, logprobs=True, top_logprobs=2, seed=5)
    text = "".join(chunk.text for chunk in stream)
    result = stream.result()
    assert text == result.text == stream.text
    assert result.finish_reason is palimpsest.FinishReason.LENGTH
    assert len(result.tokens) == result.usage.generated_tokens == 24
    assert result.position == result.usage.prompt_tokens + 24
    assert stream.call_id
    for token in result.tokens:
        assert token.logprob is not None and token.logprob <= 0
        assert len(token.top) == 2 and token.top[0].logprob >= token.top[1].logprob
    again = client.generate(PROMPT, max_tokens=24, ignore_end_of_text=True, logprobs=True, top_logprobs=2, seed=5)
    assert again.result().tokens == result.tokens


def test_a_drawn_seed_is_told_and_repeats_the_reply(client: Any) -> None:
    first = client.generate(PROMPT, max_tokens=16).result()
    assert client.generate(PROMPT, max_tokens=16, seed=first.seed).result().tokens == first.tokens


def test_tokens_and_text_are_one(client: Any) -> None:
    tokens = client.tokenize(PROMPT)
    assert client.detokenize(tokens.ids) == PROMPT
    by_text = client.generate(PROMPT, max_tokens=8, temperature=0, return_state_digest=True).result()
    by_ids = client.generate(tokens.ids, max_tokens=8, temperature=0, return_state_digest=True).result()
    assert by_text.tokens == by_ids.tokens
    assert by_text.state_digest == by_ids.state_digest


def test_scores_add_up_in_one_piece_or_in_two(client: Any) -> None:
    whole = client.score(PROMPT + PROMPT, return_tokens=True)
    assert whole.tokens[0].logprob is None
    logprobs = [token.logprob for token in whole.tokens[1:]]
    assert whole.scored_tokens == len(logprobs)
    assert whole.total_logprob == pytest.approx(math.fsum(logprobs), abs=1e-3)
    ids = client.tokenize(PROMPT + PROMPT).ids
    with client.create_session() as session:
        parts = [session.score(ids[:7]), session.score(ids[7:])]
    assert sum(part.scored_tokens for part in parts) == whole.scored_tokens
    assert sum(part.total_logprob for part in parts) == pytest.approx(whole.total_logprob, abs=1e-2)


def test_what_is_scored_last_is_the_end_of_the_whole(client: Any) -> None:
    ids = client.tokenize(PROMPT + PROMPT).ids
    whole = client.score(ids, return_tokens=True)
    last = client.score(ids, return_tokens=True, score_last=3)
    assert [token.logprob for token in last.tokens] == [token.logprob for token in whole.tokens[-3:]]
    assert last.total_logprob == pytest.approx(math.fsum(token.logprob for token in last.tokens), abs=1e-6)
    assert last.scored_tokens == 3
    assert last.unknown_tokens == 0
    with pytest.raises(palimpsest.InvalidArgument, match="score_last is 0; accepted: 1 to"):
        client.score(ids, score_last=0)


def test_a_session_goes_on_where_it_stands(client: Any) -> None:
    with client.create_session(ttl=300) as session:
        first = session.generate(PROMPT, max_tokens=8, ignore_end_of_text=True).result()
        assert session.refresh().position == first.position
        second = session.generate(max_tokens=8, ignore_end_of_text=True).result()
        assert second.position == first.position + 8
        assert second.usage.cached_tokens >= first.position - 1
        assert session.info.ttl == 300
        assert session.update(ttl=0).expire_time is None
        name = session.name
    with pytest.raises(palimpsest.NotFound):
        client.get_session(name)


def test_a_fork_goes_its_parents_way(client: Any) -> None:
    with client.create_session() as parent:
        parent.generate_text(PROMPT, max_tokens=8)
        (fork,) = parent.fork()
        with fork:
            options: palimpsest.GenerateOptions = {"max_tokens": 8, "seed": 3, "return_state_digest": True}
            ours = parent.generate(" and", **options).result()
            theirs = fork.generate(" and", **options).result()
    assert (ours.tokens, ours.state_digest) == (theirs.tokens, theirs.state_digest)


def test_a_snapshot_goes_on_in_another_server_with_the_same_bytes(
    client: Any, connect: Connect, other_target: str, tmp_path: pathlib.Path
) -> None:
    other = connect(other_target)
    with client.create_session() as session:
        session.generate_text(PROMPT, max_tokens=8)
        snapshot = session.snapshot(ttl=300)
        stayed = session.generate(" and", max_tokens=16, seed=9, return_state_digest=True).result()
    client.save_snapshot(snapshot, tmp_path / "state")
    uploaded = other.upload_snapshot(tmp_path / "state", "moved")
    assert uploaded.state_digest == snapshot.state_digest and uploaded.position == snapshot.position
    with other.create_session(source=uploaded) as session:
        moved = session.generate(" and", max_tokens=16, seed=9, return_state_digest=True).result()
    inline = other.generate(
        " and", state=(tmp_path / "state").read_bytes(), max_tokens=16, seed=9, return_state_digest=True
    ).result()
    assert stayed.tokens == moved.tokens == inline.tokens
    assert stayed.state_digest == moved.state_digest == inline.state_digest
    assert "snapshots/moved" in [listed.name for listed in other.list_snapshots(page_size=1)]
    other.delete_snapshot(uploaded)
    client.delete_snapshot(snapshot)


def test_a_damaged_snapshot_is_refused(client: Any) -> None:
    with client.create_session() as session:
        session.generate_text(PROMPT, max_tokens=0)
        snapshot = session.snapshot()
    data = bytearray(client.download_snapshot(snapshot))
    client.delete_snapshot(snapshot)
    data[len(data) // 2] ^= 1
    with pytest.raises(palimpsest.DataLoss):
        client.upload_snapshot(data)
    with pytest.raises(palimpsest.DataLoss):
        client.generate("x", state=bytes(data)).result()
    with pytest.raises(palimpsest.DataLoss):
        client.upload_snapshot(data[: len(data) // 2])
    with pytest.raises(palimpsest.InvalidArgument):
        client.upload_snapshot(b"not a snapshot, whatever it may be" * 10)


def test_lists_go_through_all_pages(client: Any) -> None:
    sessions = [client.create_session(f"page-{index}") for index in range(5)]
    listed = [session.name for session in client.list_sessions(page_size=2)]
    assert [name for name in listed if name.startswith("sessions/page-")] == [session.name for session in sessions]
    for session in sessions:
        session.delete()


def test_closing_frees_the_session(client: Any) -> None:
    with client.create_session() as session:
        stream = session.generate(PROMPT, max_tokens=1000, ignore_end_of_text=True)
        next(stream)
        stream.close()
        give_up = time.monotonic() + 30
        while session.refresh().condition is palimpsest.SessionCondition.ACTIVE:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        assert session.info.position > len(client.tokenize(PROMPT).ids)


def test_a_session_goes_on_at_once_after_a_reply_was_stopped(client: Any) -> None:
    with client.create_session() as session:
        for _ in range(5):
            with session.generate(PROMPT, max_tokens=1000, ignore_end_of_text=True) as stream:
                next(stream)
            session.generate_text(" and", max_tokens=1)
        with pytest.raises(palimpsest.DeadlineExceeded):
            session.generate_text(PROMPT, max_tokens=60000, ignore_end_of_text=True, timeout=0.3)
        session.generate_text(" and", max_tokens=1)
        left = session.generate(PROMPT, max_tokens=60000, ignore_end_of_text=True)
        next(left)
        (fork,) = session.fork()
        fork.delete()
        with pytest.raises(palimpsest.Cancelled, match="ForkSession"):
            left.result()


def test_a_reply_that_nobody_reads_is_interrupted(client: Any, connect: Connect, target: str) -> None:
    elsewhere = connect(target, retry=palimpsest.RetryPolicy(max_attempts=1))
    session = client.create_session()
    left = session.generate(PROMPT, max_tokens=60000, ignore_end_of_text=True)
    next(left)
    with pytest.raises(palimpsest.Aborted):
        elsewhere.generate_text(" and", session=session.name, max_tokens=1)
    freed = elsewhere.interrupt_session(session.name)
    assert freed.info.condition is palimpsest.SessionCondition.IDLE
    assert elsewhere.generate(" and", session=freed.name, max_tokens=1).result().position > freed.info.position
    with pytest.raises(palimpsest.Cancelled):
        left.result()
    assert session.interrupt().condition is palimpsest.SessionCondition.IDLE  # of one that is free nothing changes
    session.delete()
    with pytest.raises(palimpsest.NotFound):
        session.interrupt()


def test_a_session_that_a_call_holds_is_deleted_by_force(client: Any, connect: Connect, target: str) -> None:
    elsewhere = connect(target, retry=palimpsest.RetryPolicy(max_attempts=1))
    session = client.create_session()
    left = session.generate(PROMPT, max_tokens=60000, ignore_end_of_text=True)
    next(left)
    with pytest.raises(palimpsest.Aborted):
        elsewhere.delete_session(session.name)
    elsewhere.delete_session(session.name, force=True)
    with pytest.raises(palimpsest.NotFound):
        elsewhere.get_session(session.name)
    with pytest.raises(palimpsest.Cancelled):
        left.result()


def test_bad_input_names_the_field(client: Any) -> None:
    with pytest.raises(palimpsest.InvalidArgument) as caught:
        client.generate_text("x", temperature=-1)
    assert [violation.field for violation in caught.value.field_violations] == ["sampling.temperature"]
    assert caught.value.domain == "palimpsest.dev" and caught.value.reason
    with pytest.raises(palimpsest.NotFound):
        client.generate_text("x", session="never-made")
    with client.create_session("taken"), pytest.raises(palimpsest.AlreadyExists):
        client.create_session("taken")


async def test_many_at_once_give_what_each_gives_alone(target: str) -> None:
    async with palimpsest.AsyncClient(target) as client:

        async def digest(index: int) -> str | None:
            generation = client.generate(f"{index} {PROMPT}", max_tokens=12, seed=index, return_state_digest=True)
            return (await generation.result()).state_digest

        together = await asyncio.gather(*(digest(index) for index in range(16)))
        alone = [await digest(index) for index in range(16)]
    assert together == alone
    assert None not in together


@pytest.mark.parametrize(
    "command",
    [
        ["stream.py", PROMPT, "--server", "{target}", "--max-tokens", "8"],
        ["fork_many.py", PROMPT, "--server", "{target}", "--n", "3", "--max-tokens", "8"],
        ["resume_elsewhere.py", "{target}", "{other}", "--max-tokens", "8"],
    ],
    ids=lambda command: command[0],
)
def test_the_examples_run(command: list[str], target: str, other_target: str) -> None:
    script, *arguments = command
    filled = [argument.format(target=target, other=other_target) for argument in arguments]
    run = subprocess.run(
        [sys.executable, str(HERE.parent / "examples" / script), *filled], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout


def test_the_readmes_code_runs(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (HERE.parent / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("localhost:50051", target), names)
    assert "nats per token" in capsys.readouterr().out
