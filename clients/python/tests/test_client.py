"""Both clients against a server that behaves as each test wants: well, badly, slowly or not at all."""

from __future__ import annotations

import gc
import inspect
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import grpc
import pytest
from conftest import Connect, FakeServer
from google.protobuf import any_pb2, duration_pb2, empty_pb2
from google.rpc import error_details_pb2, status_pb2

import palimpsest
from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import model_pb2, session_pb2, snapshot_pb2

MIB = 1 << 20


def abort_with(code: grpc.StatusCode, message: str, *details: Any) -> Callable[[Any, grpc.ServicerContext], Any]:
    """An answer that fails with google.rpc details."""

    def answer(_request: Any, context: grpc.ServicerContext) -> Any:
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, message)

    return answer


def reply(*responses: generation.GenerateResponse) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(_request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        context.send_initial_metadata((("x-request-id", "r-17"),))
        yield from responses

    return answer


def piece(text: str, *ids: int, position: int = 0) -> generation.GenerateResponse:
    return generation.GenerateResponse(
        text=text, tokens=[generation.GeneratedToken(id=id_) for id_ in ids], position=position
    )


def finish(**fields: Any) -> generation.GenerateResponse:
    return generation.GenerateResponse(finish=generation.GenerateFinish(**fields))


def endless(stopped: threading.Event) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Sends a piece every 10 ms until the client goes away; then sets `stopped`."""

    def answer(_request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        context.add_callback(stopped.set)
        while context.is_active():
            yield piece("x", 1)
            time.sleep(0.01)

    return answer


def session_named(name: str, position: int = 0) -> session_pb2.Session:
    return session_pb2.Session(name=name, model="models/m", position=position, condition="CONDITION_IDLE", etag="e1")


# --- generation


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
    assert stream.request_id == "r-17"


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
        request_id="mine",
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
        request_id="mine",
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
        context.send_initial_metadata((("x-request-id", "r-18"),))
        yield piece("so far", 1)
        abort_with(grpc.StatusCode.UNAVAILABLE, "draining")(request, context)

    server.answer["Generate"] = answer
    stream = client.generate("x")
    assert next(stream).text == "so far"
    with pytest.raises(palimpsest.Unavailable, match="UNAVAILABLE: draining") as caught:
        next(stream)
    assert stream.text == "so far"
    assert caught.value.request_id == "r-18"


def test_a_stream_that_ends_without_a_finish_is_an_error(server: FakeServer, client: Any) -> None:
    server.answer["Generate"] = reply(piece("half", 1))
    with pytest.raises(palimpsest.Internal, match="ended before"):
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


# --- scoring and tokens


def test_a_score_is_read_whole(server: FakeServer, client: Any) -> None:
    server.answer["Score"] = lambda request, context: generation.ScoreResponse(
        total_logprob=-3.5,
        scored_tokens=1,
        scored_bytes=2,
        scored_characters=1,
        unknown_tokens=4,
        position=2,
        tokens=[
            generation.ScoredToken(id=1, token=b"a"),
            generation.ScoredToken(id=2, token=b"bc", logprob=-3.5),
        ],
    )
    result = client.score("abc", return_tokens=True, session="s")
    assert (result.total_logprob, result.scored_tokens, result.scored_bytes, result.position) == (-3.5, 1, 2, 2)
    assert (result.scored_characters, result.unknown_tokens) == (1, 4)
    assert [token.logprob for token in result.tokens] == [None, -3.5]
    (request,) = server.received("Score")
    assert request == generation.ScoreRequest(session="sessions/s", text="abc", return_tokens=True)


def test_only_the_last_tokens_are_scored_if_so_asked(server: FakeServer, client: Any) -> None:
    server.answer["Score"] = lambda request, context: generation.ScoreResponse()
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a")
    client.score([1, 2, 3], score_last=2)
    client.create_session().score("abc", score_last=0)
    client.score("abc")
    by_ids, in_session, all_of_it = server.received("Score")
    assert by_ids.score_last == 2
    assert in_session.HasField("score_last"), "what is wrong is for the server to say"
    assert not all_of_it.HasField("score_last")


def test_text_becomes_tokens_and_tokens_text(server: FakeServer, client: Any) -> None:
    server.answer["Tokenize"] = lambda request, context: generation.TokenizeResponse(
        ids=[1, 2], tokens=[b"a", b"\xff"], unknown_tokens=1
    )
    server.answer["Detokenize"] = lambda request, context: generation.DetokenizeResponse(text="a\ufffd")
    assert client.tokenize("x") == palimpsest.Tokens((1, 2), (b"a", b"\xff"), unknown_tokens=1)
    client.tokenize("y", continues=True)
    assert [request.continues for request in server.received("Tokenize")] == [False, True]
    assert client.detokenize((1, 2)) == "a\ufffd"
    assert list(server.received("Detokenize")[0].ids) == [1, 2]


# --- sessions


def test_a_session_is_created_used_and_deleted(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a", 3)
    server.answer["Generate"] = reply(piece("hi", 1), finish())
    server.answer["DeleteSession"] = lambda request, context: empty_pb2.Empty()
    with client.create_session("a", model="m", ttl=timedelta(seconds=1.5)) as session:
        assert (session.name, session.info.position) == ("sessions/a", 3)
        assert session.info.condition is palimpsest.SessionCondition.IDLE
        assert session.info.expire_time is None
        assert session.generate_text("x") == "hi"
    (request,) = server.received("CreateSession")
    assert request.session == session_pb2.Session(
        model="models/m", ttl=duration_pb2.Duration(seconds=1, nanos=500_000_000)
    )
    assert len(request.request_id) == 36
    assert server.received("Generate")[0].session == "sessions/a"
    assert server.received("DeleteSession") == [session_pb2.DeleteSessionRequest(name="sessions/a")]


def test_a_source_may_be_an_object_or_a_full_name(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/b")
    parent = client.create_session()
    client.create_session(source=parent)
    client.create_session(source="snapshots/evening")
    _, from_session, from_snapshot = server.received("CreateSession")
    assert from_session.source_session == "sessions/b"
    assert from_snapshot.source_snapshot == "snapshots/evening"
    with pytest.raises(ValueError, match=r'"evening".*begins with'):
        client.create_session(source="evening")


def test_deleting_at_the_end_forgives_a_session_that_is_gone(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a")
    server.answer["DeleteSession"] = abort_with(grpc.StatusCode.NOT_FOUND, "expired")
    with client.create_session():
        pass


def test_deleting_at_the_end_waits_for_a_cancelled_reply_to_let_go(server: FakeServer, client: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        if len(server.received("DeleteSession")) < 3:
            context.abort(grpc.StatusCode.ABORTED, "a call holds it")
        return empty_pb2.Empty()

    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a")
    server.answer["DeleteSession"] = answer
    with client.create_session():
        pass
    assert len(server.received("DeleteSession")) == 3


def test_the_error_of_the_block_wins_over_the_error_of_deleting(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a")
    server.answer["DeleteSession"] = abort_with(grpc.StatusCode.PERMISSION_DENIED, "no")
    with pytest.raises(ZeroDivisionError), client.create_session():
        raise ZeroDivisionError
    with pytest.raises(palimpsest.PermissionDenied), client.create_session():
        pass


def test_a_fork_gives_sessions(server: FakeServer, client: Any) -> None:
    server.answer["GetSession"] = lambda request, context: session_named(request.name, 9)
    server.answer["ForkSession"] = lambda request, context: session_pb2.ForkSessionResponse(
        sessions=[session_named(f"sessions/{id_}", 9) for id_ in request.session_ids]
    )
    children = client.get_session("a").fork(session_ids=["b", "c"], ttl=0)
    assert [child.name for child in children] == ["sessions/b", "sessions/c"]
    (request,) = server.received("ForkSession")
    assert request.name == "sessions/a"
    assert request.HasField("ttl") and request.ttl == duration_pb2.Duration()


def test_update_changes_the_time_to_live_only(server: FakeServer, client: Any) -> None:
    server.answer["GetSession"] = lambda request, context: session_named(request.name)
    server.answer["UpdateSession"] = lambda request, context: session_pb2.Session(
        name=request.session.name, ttl=request.session.ttl, expire_time=datetime(2030, 1, 2, tzinfo=timezone.utc)
    )
    info = client.get_session("a").update(ttl=60)
    assert (info.ttl, info.expire_time) == (60.0, datetime(2030, 1, 2, tzinfo=timezone.utc))
    client.update_session("a", ttl=5, etag="e1")
    first, second = server.received("UpdateSession")
    assert list(first.update_mask.paths) == ["ttl"]
    assert (first.session.etag, second.session.etag) == ("", "e1")


def test_pages_are_followed_to_the_end_even_through_empty_ones(server: FakeServer, client: Any) -> None:
    pages = {"": (["a", "b"], "1"), "1": ([], "2"), "2": (["c"], "")}

    def answer(request: Any, context: grpc.ServicerContext) -> session_pb2.ListSessionsResponse:
        ids, token = pages[request.page_token]
        return session_pb2.ListSessionsResponse(
            sessions=[session_named(f"sessions/{id_}") for id_ in ids], next_page_token=token
        )

    server.answer["ListSessions"] = answer
    assert [session.name for session in client.list_sessions(page_size=2)] == ["sessions/a", "sessions/b", "sessions/c"]
    assert [(request.page_size, request.page_token) for request in server.received("ListSessions")] == [
        (2, ""),
        (2, "1"),
        (2, "2"),
    ]


def test_pages_are_asked_for_only_as_they_are_needed(server: FakeServer, client: Any) -> None:
    server.answer["ListSnapshots"] = lambda request, context: snapshot_pb2.ListSnapshotsResponse(
        snapshots=[snapshot_pb2.Snapshot(name="snapshots/a")], next_page_token="more"
    )
    listing = client.list_snapshots()
    assert server.received("ListSnapshots") == []
    assert next(listing).name == "snapshots/a"
    assert len(server.received("ListSnapshots")) == 1


def test_calls_on_a_session_carry_its_name_as_metadata(server: FakeServer, client: Any) -> None:
    server.answer["Generate"] = reply(finish())
    server.answer["Score"] = lambda request, context: generation.ScoreResponse()
    server.answer["GetSession"] = lambda request, context: session_named(request.name)
    server.answer["ForkSession"] = lambda request, context: session_pb2.ForkSessionResponse()
    server.answer["CreateSnapshot"] = lambda request, context: snapshot_pb2.Snapshot()
    server.answer["Tokenize"] = lambda request, context: generation.TokenizeResponse()
    client.generate_text("x", session="a")
    client.score("x", session="sessions/a")
    client.get_session("a").fork()
    client.create_snapshot("a")
    client.tokenize("x")
    for name in ("Generate", "Score", "GetSession", "ForkSession", "CreateSnapshot"):
        assert server.metadata[name]["x-goog-request-params"] == "session=sessions/a", name
    assert "x-goog-request-params" not in server.metadata["Tokenize"]


def test_metadata_of_the_client_goes_with_every_call(server: FakeServer, connect: Connect) -> None:
    server.answer["Tokenize"] = lambda request, context: generation.TokenizeResponse()
    connect(server.target, metadata=[("authorization", "Bearer x")]).tokenize("x")
    assert server.metadata["Tokenize"]["authorization"] == "Bearer x"


# --- snapshots


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB])
def test_an_upload_goes_in_pieces_after_its_header(server: FakeServer, client: Any, size: int) -> None:
    server.answer["UploadSnapshot"] = lambda requests, context: snapshot_pb2.Snapshot(name="snapshots/a")
    data = bytes(index % 251 for index in range(size))
    assert client.upload_snapshot(data, "a", model="m", ttl=7).name == "snapshots/a"
    (requests,) = server.received("UploadSnapshot")
    header, *pieces = requests
    assert (header.snapshot_id, header.model, header.snapshot.ttl.seconds) == ("a", "models/m", 7)
    assert all(not piece.snapshot_id and 0 < len(piece.data) <= MIB for piece in pieces)
    assert header.data + b"".join(piece.data for piece in pieces) == data


def test_an_upload_may_come_from_a_path_or_a_file(server: FakeServer, client: Any, tmp_path: pathlib.Path) -> None:
    server.answer["UploadSnapshot"] = lambda requests, context: snapshot_pb2.Snapshot()
    path = tmp_path / "state"
    path.write_bytes(b"bytes")
    client.upload_snapshot(path)
    client.upload_snapshot(str(path))
    with open(path, "rb") as file:
        client.upload_snapshot(file)
    for requests in server.received("UploadSnapshot"):
        assert b"".join(request.data for request in requests) == b"bytes"


def test_a_download_is_put_together_and_checked(server: FakeServer, client: Any, tmp_path: pathlib.Path) -> None:
    def pieces(size: int) -> Callable[[Any, grpc.ServicerContext], Any]:
        return lambda request, context: iter(
            [
                snapshot_pb2.DownloadSnapshotResponse(snapshot=snapshot_pb2.Snapshot(size_bytes=size), data=b"ab"),
                snapshot_pb2.DownloadSnapshotResponse(data=b"cd"),
            ]
        )

    server.answer["DownloadSnapshot"] = pieces(4)
    assert client.download_snapshot("a") == b"abcd"
    client.save_snapshot("snapshots/a", tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == b"abcd"
    server.answer["DownloadSnapshot"] = pieces(5)
    with pytest.raises(palimpsest.DataLoss, match=r"4 bytes.* 5"):
        client.save_snapshot("a", tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_bytes() == b"abcd"


# --- models and health


def test_models_are_read(server: FakeServer, client: Any) -> None:
    model = model_pb2.Model(name="models/m", condition="CONDITION_READY", slots=4, parameter_count=7)
    server.answer["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(models=[model])
    server.answer["GetModel"] = lambda request, context: model
    server.answer["LoadModel"] = lambda request, context: model
    server.answer["UnloadModel"] = lambda request, context: empty_pb2.Empty()
    (listed,) = client.list_models()
    assert listed == client.get_model("m") == client.get_model(listed) == client.load_model("m", "folder")
    assert (listed.condition, listed.slots, listed.parameter_count) == (palimpsest.ModelCondition.READY, 4, 7)
    assert client.unload_model(listed) is None
    assert server.received("UnloadModel")[0].name == "models/m"


def test_an_enum_value_newer_than_the_client_is_unspecified(server: FakeServer, client: Any) -> None:
    server.answer["GetModel"] = lambda request, context: model_pb2.Model.FromString(b"\x10\x63")
    assert client.get_model("m").condition is palimpsest.ModelCondition.UNSPECIFIED


def test_waiting_until_serving_lasts_as_long_as_warming_up(server: FakeServer, client: Any) -> None:
    from palimpsest import _wire

    statuses = iter([0, 2, 2, 1])

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        response: Any = _wire.HealthCheckResponse()
        response.status = next(statuses)
        return response

    server.answer["Check"] = answer
    client.wait_until_serving(timeout=30)
    assert len(server.received("Check")) == 4


def test_waiting_for_a_server_that_is_not_there_ends(connect: Connect) -> None:
    client = connect("127.0.0.1:1")
    with pytest.raises(palimpsest.DeadlineExceeded, match=r"did not serve within 0\.2 s"):
        client.wait_until_serving(timeout=0.2)


# --- errors and retries


def test_bad_input_names_the_field(server: FakeServer, client: Any) -> None:
    bad_request = error_details_pb2.BadRequest()
    bad_request.field_violations.add(field="sampling.temperature", description="is -1; give 0 to 100")
    server.answer["Generate"] = abort_with(
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.temperature is -1; give 0 to 100",
        error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="palimpsest.dev", metadata={"limit": "100"}),
        bad_request,
    )
    with pytest.raises(palimpsest.InvalidArgument) as caught:
        client.generate_text("x", temperature=-1)
    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error) == "INVALID_ARGUMENT: sampling.temperature is -1; give 0 to 100"
    assert (error.reason, error.domain, error.metadata) == ("INVALID_FIELD", "palimpsest.dev", {"limit": "100"})
    assert error.field_violations == (palimpsest.FieldViolation("sampling.temperature", "is -1; give 0 to 100"),)
    assert error.retry_delay is None


def test_a_full_queue_says_when_to_come_back(server: FakeServer, client: Any) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=250_000_000))
    server.answer["Score"] = abort_with(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry)
    with pytest.raises(palimpsest.ResourceExhausted) as caught:
        client.score("x")
    assert caught.value.retry_delay == 1.25


def test_damaged_details_do_not_hide_the_error(server: FakeServer, client: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")

    server.answer["Tokenize"] = answer
    with pytest.raises(palimpsest.NotFound, match="no such model") as caught:
        client.tokenize("x")
    assert caught.value.reason == ""


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_has_its_class(server: FakeServer, client: Any, code: grpc.StatusCode) -> None:
    server.answer["LoadModel"] = lambda request, context: context.abort(code, "words")
    with pytest.raises(palimpsest.PalimpsestError, match="words") as caught:
        client.load_model("m", "p")
    assert caught.value.code is code
    expected = "PalimpsestError" if code is grpc.StatusCode.UNKNOWN else code.name.title().replace("_", "")
    assert type(caught.value).__name__ == expected


def test_calls_that_do_no_harm_twice_are_tried_again_with_the_same_request_id(server: FakeServer, client: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> session_pb2.Session:
        if len(server.received("CreateSession")) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return session_named("sessions/a")

    server.answer["CreateSession"] = answer
    assert client.create_session().name == "sessions/a"
    requests = server.received("CreateSession")
    assert len(requests) == 3
    assert len({request.request_id for request in requests}) == 1


def test_calls_that_append_are_never_tried_again(server: FakeServer, client: Any) -> None:
    for name in ("Generate", "Score", "DeleteSession"):
        server.answer[name] = abort_with(grpc.StatusCode.UNAVAILABLE, "draining")
    for call in (client.generate_text, client.score, client.delete_session):
        with pytest.raises(palimpsest.Unavailable):
            call("x")
    assert sorted(name for name, _ in server.requests) == ["DeleteSession", "Generate", "Score"]


def test_a_server_that_is_not_there_is_unavailable(connect: Connect) -> None:
    client = connect("127.0.0.1:1")
    with pytest.raises(palimpsest.Unavailable):
        client.list_models()
    with pytest.raises(palimpsest.Unavailable):
        client.generate_text("x")


# --- the two clients


def _surface(kind: type) -> dict[str, inspect.Signature]:
    return {
        {"aclose": "close"}.get(name, name): inspect.signature(member)
        for name, member in vars(kind).items()
        if not name.startswith("_") and callable(member)
    }


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [
        (palimpsest.Client, palimpsest.AsyncClient),
        (palimpsest.Session, palimpsest.AsyncSession),
        (palimpsest.Generation, palimpsest.AsyncGeneration),
    ],
)
def test_both_clients_have_the_same_methods_with_the_same_arguments(blocking: type, asynchronous: type) -> None:
    ours, theirs = _surface(blocking), _surface(asynchronous)
    assert ours.keys() == theirs.keys()
    for name, signature in ours.items():
        assert list(signature.parameters.values()) == list(theirs[name].parameters.values()), name


@pytest.mark.parametrize("kind", [palimpsest.Client, palimpsest.AsyncClient, palimpsest.Session, palimpsest.Generation])
def test_every_method_is_documented(kind: type) -> None:
    for name in _surface(kind):
        assert inspect.getdoc(getattr(kind, name)), name
