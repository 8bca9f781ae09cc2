"""Both clients upload and download snapshots."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from conftest import FakeServer

import palimpsest
from palimpsest.v1 import snapshot_pb2

MIB = 1 << 20


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
