"""Checks the compose files: Compose reads them, what they mount is there, and each service is pinned and confined."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
COMPOSE = Path(sys.executable).parent / "docker-compose"
OURS = "palimpsest"  # its image is built here, and has a health check inside


def service_errors(name: str, service: dict[str, Any]) -> Iterator[str]:
    """What a service lacks."""
    tag = service["image"].partition(":")[2]
    if not tag or tag == "latest":
        yield f"{name}: the image {service['image']} is not pinned"
    if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
        yield f"{name}: its root can be written, or it keeps capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield f"{name}: it may gain privileges"
    if name != OURS and "healthcheck" not in service:
        yield f"{name}: it has no health check"
    for port in service.get("ports", []):
        if port.get("host_ip") != "127.0.0.1":
            yield f"{name}: port {port['target']} is open to other machines"
    for volume in service.get("volumes", []):
        if volume["type"] == "bind" and not Path(volume["source"]).exists():
            yield f"{name}: {volume['source']} is not there"
        if volume["type"] == "bind" and not volume.get("read_only"):
            yield f"{name}: {volume['source']} can be written from inside"


def errors(files: list[str]) -> Iterator[str]:
    """What is wrong with these files, taken together."""
    command = [COMPOSE, *(f"--file={DEPLOY / file}" for file in files), "config", "--format=json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        yield answer.stderr
        return
    for name, service in json.loads(answer.stdout)["services"].items():
        yield from (f"{' + '.join(files)}: {error}" for error in service_errors(name, service))


def main() -> int:
    """0 when all is well."""
    overlays = ("compose.auth.yaml", "compose.cuda.yaml", "compose.envoy.yaml")
    found = [*errors(["compose.yaml"]), *(line for file in overlays for line in errors(["compose.yaml", file]))]
    for error in found:
        print(error, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
