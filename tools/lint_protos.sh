#!/usr/bin/env bash
# Lints the wire contract with buf. The imports come from the Python environment, so buf gets a compiled image.
set -euo pipefail
cd "$(dirname "$0")/.."
image=$(mktemp --suffix=.binpb)
trap 'rm -f "$image"' EXIT
googleapis=$(.venv/bin/python -c 'import google.rpc as m; print(list(m.__path__)[0] + "/../..")')
protoc -I proto -I "$googleapis" --include_imports --include_source_info -o "$image" proto/palimpsest/v1/*.proto
.venv/bin/buf lint "$image" --config proto/buf.yaml
