"""What the server reports, as plain values.

All classes are frozen. Times are `datetime` in UTC; durations are seconds as `float`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypedDict


class FinishReason(enum.Enum):
    """Why a generation ended."""

    UNSPECIFIED = "unspecified"
    LENGTH = "length"
    """`max_tokens` were generated."""
    STOP_TOKEN = "stop_token"
    """The model ended its text, or one of `stop_token_ids` was sampled."""
    STOP_STRING = "stop_string"
    """One of the `stop` strings appeared; `GenerateResult.stop_string` says which."""
    CONTEXT_FULL = "context_full"
    """The model was trained with positions, and the context has reached the last of them."""


class SessionCondition(enum.Enum):
    """What a session is doing."""

    UNSPECIFIED = "unspecified"
    IDLE = "idle"
    ACTIVE = "active"
    """A call is appending to it: other calls on it get `Aborted`."""
    QUARANTINED = "quarantined"
    """Its numbers stopped being finite. It answers no more; delete it, or go back to a snapshot."""


class ModelCondition(enum.Enum):
    """Where a model is in its life."""

    UNSPECIFIED = "unspecified"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


class Health(enum.Enum):
    """What the server says of itself in the standard health service."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    """Warming up, or draining before it stops."""
    SERVICE_UNKNOWN = "service_unknown"


@dataclass(frozen=True)
class TokenLogprob:
    """One token and the natural logarithm of its probability."""

    id: int
    token: bytes
    """The token's bytes; they may be a part of a character."""
    logprob: float


@dataclass(frozen=True)
class GeneratedToken:
    """A token that the model chose."""

    id: int
    logprob: float | None = None
    """Set if `logprobs` was asked for: before bias, penalties, temperature and truncation."""
    top: tuple[TokenLogprob, ...] = ()
    """The most probable alternatives, most probable first, if `top_logprobs` was asked for."""


@dataclass(frozen=True)
class ScoredToken:
    """A token of a scored text."""

    id: int
    token: bytes
    logprob: float | None
    """None for the first token of an empty context: nothing predicts it."""
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a call used."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    """The stopping token included."""
    cached_tokens: int = 0
    """Tokens of context that the state brought along and that were not computed again."""
    queue_seconds: float = 0.0
    time_to_first_token_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True)
class Chunk:
    """A piece of a reply, as it comes."""

    text: str
    """The next characters. Empty while the tokens might still be part of a character or of a stop string."""
    tokens: tuple[GeneratedToken, ...]
    """The tokens sampled since the chunk before."""
    position: int
    """Number of tokens of the whole context after this chunk."""


@dataclass(frozen=True)
class GenerateResult:
    """A whole reply and how it ended."""

    text: str
    tokens: tuple[GeneratedToken, ...]
    position: int
    """Number of tokens of the whole context now."""
    finish_reason: FinishReason
    stop_string: str
    """Which of the `stop` strings appeared, or empty."""
    usage: Usage
    seed: int
    """The seed that was used: give it again for the same reply."""
    state: bytes | None
    """The state at the end, if `return_state` was asked for: give it as `state` to go on, here or elsewhere."""
    state_digest: str | None
    """SHA-256 of the state in hexadecimal, if `return_state_digest` was asked for. Equal digests mean equal states."""


@dataclass(frozen=True)
class ScoreResult:
    """How probable a text is."""

    total_logprob: float
    """Sum of the natural log-probabilities of the scored tokens."""
    scored_tokens: int
    """Number of tokens in the sum: all, or the last `score_last`, but the first of an empty context."""
    scored_bytes: int
    """Bytes of the text that the scored tokens stand for."""
    scored_characters: int
    """Characters (Unicode code points) of that text."""
    unknown_tokens: int
    """How often the text has something that the vocabulary does not; 0 for token ids. See `Tokens.unknown_tokens`."""
    tokens: tuple[ScoredToken, ...]
    """Each token, or the last `score_last`, if `return_tokens` or `top_logprobs` was asked for."""
    position: int
    usage: Usage
    state: bytes | None
    state_digest: str | None


@dataclass(frozen=True)
class Tokens:
    """A text in the model's tokens."""

    ids: tuple[int, ...]
    tokens: tuple[bytes, ...]
    """The bytes of each token, in the same order."""
    unknown_tokens: int = 0
    """How often the text has something that the vocabulary does not: a word, or a byte of a vocabulary of characters.
    Each became the unknown token, or was left out where the vocabulary has no such token."""


@dataclass(frozen=True)
class SessionInfo:
    """A session as the server last reported it."""

    name: str
    model: str
    condition: SessionCondition
    position: int
    """Number of tokens of its context."""
    state_bytes: int
    """Bytes of its state: the same at every position."""
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None
    """When it will be deleted unless it is used before; None: never."""
    ttl: float
    """Seconds to live from the last use; 0: for ever."""
    etag: str
    owner: str
    """Whose it is; two owners may use the same name."""


@dataclass(frozen=True)
class Snapshot:
    """A state that was kept. It never changes."""

    name: str
    model: str
    position: int
    size_bytes: int
    """Bytes as downloaded."""
    state_digest: str
    create_time: datetime
    expire_time: datetime | None
    owner: str
    """Whose it is; two owners may use the same name."""


@dataclass(frozen=True)
class Model:
    """A checkpoint that the server has loaded under a name."""

    name: str
    condition: ModelCondition
    architecture: str
    parameter_count: int
    weight_dtype: str
    weight_bytes: int
    vocabulary_size: int
    state_bytes: int
    max_context_tokens: int
    """Tokens that a context can have; 0: any number."""
    slots: int
    """Sequences that can run at once."""
    fingerprint: str
    """SHA-256 of configuration and weights: snapshots move between servers where this is equal."""
    tokenizer: str
    backend: str
    version: str
    """Its number in the server's model repository; empty: it has none."""


class Named(Protocol):
    """Anything with a resource name: a `Session`, `SessionInfo`, `Snapshot` or `Model`."""

    @property
    def name(self) -> str: ...


Seconds = float | timedelta
"""A span of time."""

Prompt = str | Sequence[int]
"""Text, or token ids."""


class GenerateOptions(TypedDict, total=False):
    """The keyword arguments that every way to generate takes. Left out, the server's defaults hold."""

    max_tokens: int
    """Most tokens to generate; 0 only appends the prompt. The server's default is 256."""
    stop: str | Sequence[str]
    """Ends the reply where one of these strings begins. At most 16, each of 1 to 256 bytes."""
    stop_token_ids: Sequence[int]
    """Ends the reply after one of these ids. At most 64."""
    ignore_end_of_text: bool
    """Goes on past the model's end of text."""
    temperature: float
    """0 takes the most probable token; 1 is the default; at most 100."""
    top_k: int
    """Keeps the k most probable tokens; 0 keeps all."""
    top_p: float
    """Keeps the smallest set of most probable tokens that holds this much probability; in (0, 1]."""
    min_p: float
    """Drops tokens less probable than this share of the most probable one; in [0, 1)."""
    repetition_penalty: float
    """Divides (or, below zero, multiplies) logits of tokens among the last 256; in (0, 10]; 1 changes nothing."""
    presence_penalty: float
    """Subtracted once from logits of tokens among the last 256; in [-10, 10]."""
    frequency_penalty: float
    """Subtracted for each time that a token is among the last 256; in [-10, 10]."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these ids; at most 1024, each in [-100, 100]."""
    seed: int
    """The same seed, context and options give the same tokens. Drawn by the server if left out."""
    logprobs: bool
    """Gives each token's log-probability."""
    top_logprobs: int
    """Also gives this many alternatives at each place; 0 to 20."""
    return_state: bool
    """Gives the state at the end in `GenerateResult.state`."""
    return_state_digest: bool
    """Gives the state's digest in `GenerateResult.state_digest`."""
    call_id: str
    """An id for the server's logs, of at most 64 printable characters; the server makes one if left out."""
    timeout: Seconds | None
    """Deadline of the whole reply, from now."""


class ScoreOptions(TypedDict, total=False):
    """The keyword arguments that every way to score takes."""

    return_tokens: bool
    """Gives each token with its log-probability, not only the sum."""
    top_logprobs: int
    """Also gives this many alternatives at each place; 0 to 20; implies `return_tokens`."""
    score_last: int
    """Scores only the last so many tokens, 1 to all of them; those before are context. All if left out."""
    return_state: bool
    return_state_digest: bool
    call_id: str
    timeout: Seconds | None
