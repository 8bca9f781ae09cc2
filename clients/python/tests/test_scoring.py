"""Both clients score texts and turn them into tokens and back."""

from __future__ import annotations

from typing import Any

from answers import session_named
from conftest import FakeServer

import palimpsest
from palimpsest.v1 import generation_pb2 as generation


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
