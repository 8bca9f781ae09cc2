"""Both clients generate: replies whole, cut short, cancelled and late."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from answers import abort_with, endless, finish, piece, reply
from conftest import Connect, FakeServer

import palimpsest
from palimpsest.v1 import generation_pb2 as generation

MIB = 1 << 20


def test_a_generation_gives_its_chunks_and_then_its_result(server: FakeServer, client: Any) -> None:
    server.answer["Generate"] = reply(
        piece("Once", 4, position=4),
        piece("", 5, position=5),
        piece(" upon", 6, position=6),
        finish(
            reason="FINISH_REASON_STOP_STRING",
            stop_string="a time",
            seed=2**64 - 1,
            usage=generation.Usage(prompt_tokens=3, generated_tokens=3, total_seconds=0.5),
        ),
    )
    stream = client.generate("x")
    chunks = list(stream)
    assert [(chunk.text, [token.id for token in chunk.tokens]) for chunk in chunks] == [
        ("Once", [4]),
        ("", [5]),
        (" upon", [6]),
    ]
    result = stream.result()
    assert (result.text, result.position) == ("Once upon", 6)
    assert [token.id for token in result.tokens] == [4, 5, 6]
    assert (result.finish_reason, result.stop_string) == (palimpsest.FinishReason.STOP_STRING, "a time")
    assert result.usage == palimpsest.Usage(3, 3, 0, 0.0, 0.0, 0.5)
    assert (result.seed, result.state, result.state_digest) == (2**64 - 1, None, None)
    assert stream.call_id == "r-17"


def test_text_that_comes_with_the_finish_is_not_lost(server: FakeServer, client: Any) -> None:
    last = finish(reason="FINISH_REASON_LENGTH")
    last.text = "!"
    server.answer["Generate"] = reply(piece("a"), last)
    assert client.generate_text("x") == "a!"


def test_log_probabilities_that_were_not_asked_for_are_none_and_zero_is_zero(server: FakeServer, client: Any) -> None:
    top = [generation.TokenLogprob(id=9, token=b"\xe2", logprob=-0.5)]
    tokens = [generation.GeneratedToken(id=1), generation.GeneratedToken(id=2, logprob=0.0, top=top)]
    server.answer["Generate"] = reply(generation.GenerateResponse(tokens=tokens), finish())
    without, with_zero = client.generate("x").result().tokens
    assert without.logprob is None
    assert with_zero.logprob == 0.0
    assert with_zero.top == (palimpsest.TokenLogprob(9, b"\xe2", -0.5),)


def test_options_left_out_are_absent_and_zeros_are_sent(server: FakeServer, client: Any) -> None:
    server.answer["Generate"] = reply(finish())
    client.generate_text("x")
    client.generate_text(
        [0, 7],
        model="m",
        temperature=0.0,
        top_p=1.0,
        seed=0,
        repetition_penalty=1.0,
        max_tokens=0,
        stop="end",
        stop_token_ids=[3],
        logit_bias={5: -100.0},
        top_logprobs=2,
        return_state=True,
        call_id="mine",
    )
    plain, full = server.received("Generate")
    assert plain == generation.GenerateRequest(
        text="x", sampling=generation.SamplingParams(), stop=generation.StopCriteria()
    )
    assert not plain.sampling.HasField("temperature") and not plain.stop.HasField("max_tokens")
    assert full == generation.GenerateRequest(
        model="models/m",
        tokens=generation.TokenIds(ids=[0, 7]),
        sampling=generation.SamplingParams(
            temperature=0.0, top_p=1.0, seed=0, repetition_penalty=1.0, logit_bias={5: -100.0}
        ),
        stop=generation.StopCriteria(max_tokens=0, strings=["end"], token_ids=[3]),
        top_logprobs=2,
        return_state=True,
        call_id="mine",
    )


def test_no_prompt_differs_from_an_empty_one(server: FakeServer, client: Any) -> None:
    server.answer["Generate"] = reply(finish())
    prompts: list[Any] = [None, "", []]
    for prompt in prompts:
        client.generate_text(prompt, session="s")
    assert [request.WhichOneof("prompt") for request in server.received("Generate")] == [None, "text", "tokens"]


def test_a_misspelt_option_is_refused_by_name(client: Any) -> None:
    with pytest.raises(TypeError, match=r"generate\(\).*'max_token'"):
        client.generate("x", max_token=1)
    with pytest.raises(TypeError, match=r"score\(\).*'temperature'"):
        client.score("x", temperature=1)


def test_a_session_and_a_state_at_once_are_refused(client: Any) -> None:
    with pytest.raises(ValueError, match="not both"):
        client.generate("x", session="s", state=b"1")


def test_a_failure_in_mid_stream_keeps_what_came_before(server: FakeServer, client: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        context.send_initial_metadata((("x-call-id", "r-18"),))
        yield piece("so far", 1)
        abort_with(grpc.StatusCode.UNAVAILABLE, "draining")(request, context)

    server.answer["Generate"] = answer
    stream = client.generate("x")
    assert next(stream).text == "so far"
    with pytest.raises(palimpsest.Unavailable, match="UNAVAILABLE: draining") as caught:
        next(stream)
    assert stream.text == "so far"
    assert caught.value.call_id == "r-18"


def test_a_stream_that_ends_without_a_finish_is_an_error(server: FakeServer, client: Any) -> None:
    server.answer["Generate"] = reply(piece("half", 1))
    with pytest.raises(palimpsest.Internal, match="ended without saying"):
        client.generate_text("x")


def test_closing_the_iterator_cancels_the_call(server: FakeServer, client: Any) -> None:
    stopped = threading.Event()
    server.answer["Generate"] = endless(stopped)
    stream = client.generate("x")
    next(stream)
    assert not stopped.is_set()
    stream.close()
    assert stopped.wait(10)
    assert list(stream) == []
    assert set(stream.text) == {"x"}
    with pytest.raises(palimpsest.Cancelled):
        stream.result()


def test_leaving_the_block_cancels_the_call(server: FakeServer, client: Any) -> None:
    stopped = threading.Event()
    server.answer["Generate"] = endless(stopped)
    with client.generate("x") as stream:
        for _ in stream:
            break
    assert stopped.wait(10)


def test_dropping_a_generation_cancels_the_call(server: FakeServer) -> None:
    stopped = threading.Event()
    server.answer["Generate"] = endless(stopped)
    with palimpsest.Client(server.target) as client:
        for _ in client.generate("x"):
            break
        gc.collect()
        assert stopped.wait(10)


def test_closing_from_another_thread_ends_a_read_that_waits(server: FakeServer) -> None:
    stopped = threading.Event()

    def silent(_request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        context.add_callback(stopped.set)
        stopped.wait(30)
        yield from ()

    server.answer["Generate"] = silent
    with palimpsest.Client(server.target) as client:
        stream = client.generate("x")
        threading.Timer(0.2, stream.close).start()
        assert list(stream) == []
        assert stopped.wait(10)


async def test_cancelling_the_task_cancels_the_call(server: FakeServer) -> None:
    import asyncio

    stopped = threading.Event()
    server.answer["Generate"] = endless(stopped)
    async with palimpsest.AsyncClient(server.target) as client:
        task = asyncio.create_task(client.generate_text("x"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(stopped.wait, 10)


async def test_many_generations_run_side_by_side_on_one_loop(server: FakeServer) -> None:
    import asyncio

    server.answer["Generate"] = lambda request, context: reply(piece(request.text.upper(), 1), finish())(
        request, context
    )
    async with palimpsest.AsyncClient(server.target) as client:
        replies = await asyncio.gather(*(client.generate_text(f"p{index}") for index in range(32)))
    assert replies == [f"P{index}" for index in range(32)]


def test_the_timeout_is_the_deadline(server: FakeServer, connect: Connect) -> None:
    stopped = threading.Event()
    server.answer["Generate"] = endless(stopped)
    server.answer["Tokenize"] = lambda request, context: stopped.wait(5) and generation.TokenizeResponse()
    with pytest.raises(palimpsest.DeadlineExceeded):
        connect(server.target).generate_text("x", timeout=timedelta(milliseconds=200))
    assert stopped.wait(10)
    stopped.clear()
    with pytest.raises(palimpsest.DeadlineExceeded):
        connect(server.target, timeout=0.2).tokenize("x")


def test_a_large_state_goes_and_comes(server: FakeServer, client: Any) -> None:
    state = bytes(range(256)) * (30 * MIB // 256)
    server.answer["Generate"] = lambda request, context: reply(finish(state=request.state[::-1], state_digest="abc"))(
        request, context
    )
    result = client.generate("x", state=state, return_state=True).result()
    assert result.state == state[::-1]
    assert result.state_digest == "abc"
