"""Where a client connects: whether that is this machine, which proxy is on the way, and the token that goes along."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc

from palimpsest import _wire, errors

TOKEN_VARIABLE = "PALIMPSEST_TOKEN"

_LOCAL_SCHEMES = ("unix", "unix-abstract", "vsock")
_SCHEMES = ("dns", "ipv4", "ipv6", *_LOCAL_SCHEMES)
# In the order in which gRPC looks at them.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")
# What RFC 6750 allows in an Authorization header.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


class Connection:
    """What both clients derive from the arguments of their constructors.

    Raises `ValueError` where the token is malformed, or would cross a network in plain text.
    """

    def __init__(
        self,
        target: str,
        *,
        encrypted: bool,
        metadata: Sequence[tuple[str, str]],
        token: str | None,
        allow_insecure_token: bool,
        options: Sequence[tuple[str, Any]],
    ) -> None:
        local = is_local(target)
        # A proxy is of no use on the way to this machine, and seldom lets anybody through to it.
        self.options = _wire.channel_options([*([("grpc.enable_http_proxy", 0)] if local else []), *options])
        self.metadata = list(metadata)
        """Goes with every call."""
        self._proxy = "" if dict(self.options).get("grpc.enable_http_proxy") == 0 else proxy_of(target)
        has_own = any(key.lower() == "authorization" for key, _ in metadata)
        if token and has_own:
            raise ValueError("give a token or an authorization in the metadata, not both")
        if token is None:
            token = "" if has_own else os.environ.get(TOKEN_VARIABLE, "")
        token = token.strip()
        self._sends_token = bool(token) or has_own
        if not token:
            return
        if not _TOKEN.fullmatch(token):
            raise ValueError(
                "the token has characters that a token cannot have: A-Z a-z 0-9 - . _ ~ + / and = at its end"
            )
        if not encrypted and not local and not allow_insecure_token:
            raise ValueError(
                f"{target} is another machine and the connection is not encrypted: anybody on the way could read the "
                "token. Give credentials=grpc.ssl_channel_credentials(), or allow_insecure_token=True"
            )
        self.metadata.append(("authorization", f"Bearer {token}"))

    def failure(
        self, error: Any, initial_metadata: Iterable[tuple[str, str | bytes]] | None = None
    ) -> errors.PalimpsestError:
        """The exception for a failed call, with the cure where it lies in how the client was made."""
        failure = errors.from_rpc_error(error, initial_metadata)
        # What the server says of itself has a reason; only what the connection says may be the proxy's doing.
        if failure.code is grpc.StatusCode.UNAVAILABLE and not failure.reason and self._proxy:
            failure.add_cure(self._proxy)
        if failure.code is grpc.StatusCode.UNAUTHENTICATED:
            failure.add_cure(
                "the token that was sent is not accepted"
                if self._sends_token
                else f"no token was sent: give token=... to the client, or set {TOKEN_VARIABLE}"
            )
        return failure


def is_local(target: str) -> bool:
    """Whether `target` is this machine: loopback addresses, localhost and unix sockets."""
    scheme, hosts = _parse(target)
    return scheme in _LOCAL_SCHEMES or all(_is_loopback(host) for host in hosts)


def proxy_of(target: str) -> str:
    """Names the environment's proxy through which gRPC reaches `target`; empty: none. Its password is left out."""
    variable = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
    _, hosts = _parse(target)
    exceptions = next((os.environ[name] for name in _NO_PROXY_VARIABLES if os.environ.get(name)), "").split(",")
    if variable is None or any(_is_exception(hosts[0], entry.strip()) for entry in exceptions):
        return ""
    proxy = urlsplit(os.environ[variable]).netloc.rpartition("@")[2]
    return f"the way leads through the proxy {proxy} of {variable}; to go around it, add {hosts[0]} to no_proxy"


def _parse(target: str) -> tuple[str, list[str]]:
    """The scheme of a gRPC target and its hosts, without ports."""
    scheme, colon, rest = target.partition(":")
    if not colon or scheme not in _SCHEMES:
        scheme, rest = "dns", target
    if rest.startswith("//"):  # dns://authority/host:port
        rest = rest[2:].partition("/")[2]
    return scheme, [_host(address) for address in unquote(rest).split(",")]


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address


def _is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_exception(host: str, entry: str) -> bool:
    """Whether an entry of no_proxy covers `host`: as its end, or as a network that it is in."""
    if not entry:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.lower())
