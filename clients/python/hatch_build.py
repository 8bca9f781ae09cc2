"""Builds the message classes of the wire contract into the package.

The contract is proto/palimpsest/v1 at the top of the repository. A source distribution carries a copy of it in its own
`proto` folder, so that it builds where there is no repository. Nothing generated is committed.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ContractBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the .proto files for a wheel; copies them into a source distribution."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = pathlib.Path(self.root)
        protos = _find_protos(root)
        if self.target_name == "sdist":
            build_data["force_include"][str(protos / "palimpsest")] = "proto/palimpsest"
            return
        if version == "editable":
            _compile(protos, root / "src")
            return
        self._generated = tempfile.TemporaryDirectory(prefix="palimpsest-proto-")
        generated = pathlib.Path(self._generated.name)
        _compile(protos, generated)
        for file in sorted((generated / "palimpsest" / "v1").iterdir()):
            build_data["force_include"][str(file)] = f"palimpsest/v1/{file.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_generated"):
            self._generated.cleanup()


def _find_protos(root: pathlib.Path) -> pathlib.Path:
    """The folder that holds palimpsest/v1/*.proto."""
    for folder in (root / "proto", root.parent.parent / "proto"):
        if (folder / "palimpsest" / "v1").is_dir():
            return folder
    raise FileNotFoundError(
        f"no palimpsest/v1/*.proto in {root / 'proto'} or {root.parent.parent / 'proto'}: "
        "build from a checkout of the repository or from a source distribution"
    )


def _compile(protos: pathlib.Path, out: pathlib.Path) -> None:
    """Writes palimpsest/v1/*_pb2.py and .pyi under `out`."""
    import google.rpc
    import grpc_tools
    from grpc_tools import protoc

    site = pathlib.Path(next(iter(google.rpc.__path__))).parent.parent
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(file) for file in (protos / "palimpsest" / "v1").glob("*.proto"))
    arguments = ["protoc", f"-I{protos}", f"-I{site}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
    code = protoc.main([*arguments, *files])
    if code != 0:
        raise RuntimeError(f"protoc ended with {code} on {len(files)} files in {protos}")
    package = out / "palimpsest" / "v1" / "__init__.py"
    package.write_text('"""The wire contract: message classes generated from proto/palimpsest/v1."""\n')
