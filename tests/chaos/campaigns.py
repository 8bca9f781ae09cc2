"""The table of campaigns, and how one is run."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

import grpc

from . import attacks_connections, attacks_machine, attacks_memory, owners, rpc
from .arena import Arena
from .checks import MEBIBYTE, Bounds, Canary, afterwards, describe, while_attacked
from .front import Front, start_front
from .rpc import Caller
from .server import (
    FAKETIME_LIBRARY,
    Limits,
    Server,
    StartFailure,
    known_flags,
    memory_controller,
    memory_group,
)

Log = Literal["file", "unread", "full"]


@dataclass(frozen=True)
class Campaign:
    """A row of the table. `wishes` are flags that a server gets if it has them."""

    name: str
    attack: Callable[[Arena], None]
    flags: tuple[str, ...] = ()
    wishes: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)
    log: Log = "file"
    clock: bool = False
    owners: bool = False  # the server knows owners; the canary is the first one's
    group_bytes: int = 0  # the memory of the control group that the server is in; 0: none of its own
    front: str = ""  # the proxy that attackers and clients go through

    @property
    def what(self) -> str:
        """What it does, in a line."""
        return (self.attack.__doc__ or "").strip()


SMALL = ("--max_rpc_memory_bytes=268435456",)
STALL = ("--max_stall=2s",)
# Behind a proxy all clients have one address.
BEHIND = ("--max_resets_per_second=0", "--max_connections_per_peer=2000")

HAPROXY_ONLY = (("tls", attacks_connections.serves_tls), ("replicas", attacks_connections.replicas))

CAMPAIGNS = (
    Campaign("never_reading_tokenize", attacks_memory.never_reading_tokenize, SMALL, STALL),
    Campaign("never_reading_list", attacks_memory.never_reading_list, SMALL, STALL),
    Campaign("never_reading_generate", attacks_memory.never_reading_generate, ("--slots=64",), STALL),
    Campaign("bomb_mask", attacks_memory.bomb_mask),
    Campaign("bomb_fork", attacks_memory.bomb_fork),
    Campaign("bomb_stop", attacks_memory.bomb_stop),
    Campaign("bomb_unknown", attacks_memory.bomb_unknown),
    Campaign("idle_uploads", attacks_memory.idle_uploads, (), STALL),
    Campaign(
        "parked_sessions",
        attacks_memory.parked_sessions,
        ("--max_sessions=100000",),
        limits=Limits(address_space=900 * MEBIBYTE),
    ),
    Campaign("parked_sessions_in_group", attacks_memory.parked_sessions, group_bytes=256 * MEBIBYTE),
    Campaign("start_without_memory", attacks_memory.start_without_memory),
    Campaign("connection_flood", attacks_connections.connection_flood, limits=Limits(files=64)),
    Campaign("connection_flood_1024", attacks_connections.connection_flood_1024, limits=Limits(files=1024)),
    Campaign("half_requests", attacks_connections.half_requests),
    Campaign("rapid_resets", attacks_connections.rapid_resets),
    Campaign("continuation_flood", attacks_connections.continuation_flood),
    Campaign("ping_and_settings_flood", attacks_connections.ping_and_settings_flood),
    Campaign("malformed_bin_header", attacks_connections.malformed_bin_header),
    Campaign("headers_that_aborted", attacks_connections.headers_that_aborted),
    Campaign("abrupt_ends", attacks_connections.abrupt_ends),
    Campaign("damaged_frames", attacks_connections.damaged_frames),
    Campaign("stalled_log", attacks_machine.many_calls, log="unread"),
    Campaign("full_disk", attacks_machine.full_disk, log="full"),
    Campaign("thread_limit", attacks_machine.thread_limit),
    Campaign("stopped_and_continued", attacks_machine.stopped_and_continued),
    Campaign("cancellations", attacks_machine.cancellations, ("--slots=8",)),
    Campaign("clock_jump", attacks_machine.clock_jump, clock=True),
    Campaign("overload", attacks_machine.overload, ("--slots=4", "--max_queue=4")),
    Campaign(
        "overload_of_one_owner", attacks_machine.overload_of_one_owner, ("--slots=4", "--max_queue=8"), owners=True
    ),
    *(
        Campaign(f"{front}_{name}", attack, wishes=BEHIND, front=front)
        for front in ("haproxy", "envoy")
        for name, attack in (
            ("clients", attacks_connections.serves_clients),
            *(HAPROXY_ONLY if front == "haproxy" else ()),
            ("malformed_bin_header", attacks_connections.malformed_bin_header),
            ("headers_that_aborted", attacks_connections.headers_that_aborted),
            ("rapid_resets", attacks_connections.rapid_resets),
            ("continuation_flood", attacks_connections.continuation_flood),
            ("ping_and_settings_flood", attacks_connections.ping_and_settings_flood),
            ("connection_flood", attacks_connections.connection_flood),
            ("damaged_frames", attacks_connections.damaged_frames),
            ("abrupt_ends", attacks_connections.abrupt_ends),
        )
    ),
)


@dataclass
class Result:
    """What came of a campaign."""

    name: str
    failures: list[str]
    seconds: float
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What campaigns are run with."""

    binary: Path
    checkpoint: Path
    flags: frozenset[str]  # that the server knows
    fronts: dict[str, Path]  # programs of proxies
    seconds: float

    @classmethod
    def of(cls, binary: Path, checkpoint: Path, fronts: dict[str, Path], seconds: float) -> Setting:
        """For this server."""
        return cls(binary, checkpoint, frozenset(known_flags(binary)), fronts, seconds)


def lacks(campaign: Campaign, setting: Setting) -> str:
    """What this machine lacks for the campaign; empty if nothing."""
    if campaign.front and campaign.front not in setting.fronts:
        return campaign.front
    if campaign.clock and not Path(FAKETIME_LIBRARY).exists():
        return "libfaketime"
    if campaign.owners and owners.FLAG not in setting.flags:
        return "a server that knows owners"
    if campaign.group_bytes and memory_controller() is None:
        return "a memory control group that can be written to"
    return ""


@contextlib.contextmanager
def _log(kind: Log) -> Iterator[IO[bytes] | int | None]:
    if kind == "unread":
        reading, writing = os.pipe()
        try:
            yield writing
        finally:
            os.close(reading)
            os.close(writing)
    elif kind == "full":
        with open("/dev/full", "wb", buffering=0) as full:
            yield full
    else:
        yield None


def run(campaign: Campaign, setting: Setting) -> Result:
    """Starts a server, attacks it, checks it, and leaves nothing behind."""
    begin = time.monotonic()
    result = Result(campaign.name, [], 0.0)
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        _log(campaign.log) as log,
        contextlib.ExitStack() as stack,
    ):
        work = Path(folder)
        limits = campaign.limits
        if campaign.clock:
            limits = replace(limits, wall_clock=work / "clock")
            (work / "clock").write_text("+0")
        if campaign.group_bytes:
            limits = replace(limits, group=stack.enter_context(memory_group(campaign.group_bytes)))
        wishes = [flag for flag in campaign.wishes if flag[2:].partition("=")[0] in setting.flags]
        flags = ["--grace=2s", *campaign.flags, *wishes]

        metadata: rpc.Metadata = []
        if campaign.owners:
            flags.append(owners.write_tokens(work / "owners.json", {"max_queue": 4}))
            metadata = owners.metadata(owners.NAMES[0])

        def start(more: Sequence[str], given: Limits) -> Server:
            return Server(setting.binary, setting.checkpoint, ["--grace=2s", *more], work, limits=given)

        try:
            server = Server(setting.binary, setting.checkpoint, flags, work, limits=limits, log=log)
        except StartFailure as failure:
            result.failures.append(str(failure))
            result.seconds = round(time.monotonic() - begin, 1)
            return result
        stack.callback(server.kill)
        try:
            front: Front | None = None
            if campaign.front:
                front = stack.enter_context(start_front(campaign.front, setting.fronts, [server.port], work))
            with Caller(server.target, metadata=metadata) as caller:
                canary = Canary(caller)
            arena = Arena(
                server, front.port if front else server.port, canary, setting.seconds, work, start, setting.fronts
            )
            result.numbers = arena.numbers
            stack.callback(arena.leave)
            try:
                campaign.attack(arena)
            except grpc.RpcError as error:
                arena.require(False, f"an honest call of the campaign ends in {describe(error)}")
            except OSError as error:
                arena.require(False, f"the campaign ends early: {error!r}")
            found = [*arena.failures, *while_attacked(server, arena.target, canary, metadata)]
            if front is not None and not front.running():
                found.append("the proxy has ended")
            arena.leave()
            found += afterwards(server, arena.target, canary, campaign.bounds, metadata)
            result.failures = list(dict.fromkeys(found))
        except (grpc.RpcError, OSError) as error:
            result.failures.append(f"the campaign could not be finished: {error!r}")
        result.numbers |= {
            "start_mb": server.start_bytes // MEBIBYTE,
            "peak_mb": server.peak_bytes // MEBIBYTE,
        }
    result.seconds = round(time.monotonic() - begin, 1)
    return result
