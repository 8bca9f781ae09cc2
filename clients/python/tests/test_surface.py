"""The two clients have the same methods, each documented."""

from __future__ import annotations

import inspect

import pytest

import palimpsest


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
