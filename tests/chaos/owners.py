"""Owners of equal share, where the server knows owners."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .rpc import Metadata

NAMES = ("quiet-a", "quiet-b", "flood")
WATCHER = "watcher"  # who reads the metrics page
FLAG = "auth_tokens_file"


def token(owner: str) -> str:
    """The token of an owner of a test; in a file, only its hash stands."""
    return f"{owner}-token-for-tests"


def metadata(owner: str) -> Metadata:
    """What an owner's calls carry."""
    return [("authorization", f"Bearer {token(owner)}")]


def write_tokens(path: Path, share: dict[str, Any] | None = None) -> str:
    """A tokens file of the three owners, each with this share; returns the flag that names it."""
    owners: dict[str, Any] = {
        name: {
            "roles": ["user"],
            "token_sha256": [hashlib.sha256(token(name).encode()).hexdigest()],
            "share": share or {},
        }
        for name in NAMES
    }
    owners[WATCHER] = {"roles": ["metrics"], "token_sha256": [hashlib.sha256(token(WATCHER).encode()).hexdigest()]}
    path.write_text(json.dumps({"version": 1, "owners": owners}))
    return f"--{FLAG}={path}"
