"""Renders the Helm chart with each values file of its ci/ folder and checks what comes out, offline.

Every object is validated against the API schemas of the oldest and the newest Kubernetes that the chart is for, those
of the Prometheus operator against its models, and pods against the restricted security standard. What schemas cannot
know is checked here too: that names, ports and labels meet, and that the drain fits into the grace period.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator
from helm_python import Config, HelmError

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/palimpsest"
RULES = ROOT / "deploy/prometheus/rules"
DASHBOARDS = ROOT / "deploy/grafana/dashboards"
ENVOY = Path(sys.executable).parent / "envoy"
METRICS = ROOT / "server/metrics/metrics.cc"
KUBERNETES = ("1.27", "1.37")
OPERATOR_API = "monitoring.coreos.com/v1"

Object = dict[str, Any]

# Values that must be refused, each with a word of the reason.
REFUSED: tuple[tuple[Object, str], ...] = (
    ({"replica": 2}, "replica"),
    ({"replicas": -1}, "minimum"),
    ({"image": {"repository": ""}}, "repository"),
    ({"flags": {"port": 1}}, "'port'"),
    ({"flags": {"metrics_address": "0.0.0.0:1"}}, "metrics_address"),
    ({"flags": {"metrics_tls": "mutual"}}, "metrics_tls"),
    ({"models": [{"name": "a=b", "path": "x"}]}, "pattern"),
    ({"models": [{"name": "a", "path": "/x"}]}, "pattern"),
    ({"autoscaling": {"slotsUsed": 80}}, "slotsUsed"),
    ({"tls": {"clientAuthority": True}}, "secretName"),
    ({"flags": {"auth_tokens_file": "/x"}}, "'auth_tokens_file'"),
    ({"auth": {"secretName": "Not a name"}}, "pattern"),
    ({"proxy": {"image": "envoy"}}, "image"),
)


def render(chart: Path, values: Object) -> list[Object]:
    """The objects that `helm install` would send."""
    with Config(storage_driver="memory", namespace="serving") as config:
        release = config.install(chart, "demo", values, dry_run="client")
    return [document for document in yaml.safe_load_all(release["manifest"]) if document]


def schema_errors(item: Object) -> Iterator[str]:
    """Against the schemas of the object's own API, unknown fields included."""
    if item["apiVersion"] == OPERATOR_API:
        read = (
            getattr(operator, item["kind"])
            .model_validate(item)
            .model_dump(mode="json", by_alias=True, exclude_none=True)
        )
        if read != item:
            yield f"fields that {OPERATOR_API} does not have, or whose value it reads otherwise:\n{yaml.dump(item)}"
        return
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"


def restricted_errors(pod: Object) -> Iterator[str]:
    """Against the restricted pod security standard, and a read-only root besides."""
    context = pod["securityContext"]
    if not context.get("runAsNonRoot") or context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod may run as root, or without seccomp"
    for container in pod["containers"]:
        own = container["securityContext"]
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"container {container['name']} may gain privileges"
        if not own.get("readOnlyRootFilesystem"):
            yield f"container {container['name']} has a writable root"
    for volume in pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is the host's"


def parse_quantity(quantity: str | float) -> float:
    """A number from "500m", "16Gi" or 2."""
    number, unit = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(quantity)).groups()
    return float(number) * {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}[unit]


def meeting_errors(objects: list[Object]) -> Iterator[str]:
    """What one object says of another."""
    kinds: dict[str, list[Object]] = {}
    for item in objects:
        kinds.setdefault(item["kind"], []).append(item)
    (workload,) = kinds["StatefulSet"]
    (service,) = kinds["Service"]
    template = workload["spec"]["template"]
    pod = template["spec"]
    labels = template["metadata"]["labels"].items()
    server = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for container in pod["containers"] for port in container["ports"]}
    name = service["metadata"]["name"]

    if workload["spec"]["serviceName"] != name or service["spec"]["clusterIP"] != "None":
        yield "the StatefulSet has no headless Service"
    selectors = {
        "StatefulSet": workload["spec"]["selector"]["matchLabels"],
        "Service": service["spec"]["selector"],
        **{
            kind: kinds[kind][0]["spec"]["selector"]["matchLabels"]
            for kind in ("PodDisruptionBudget",)
            if kind in kinds
        },
        **{kind: kinds[kind][0]["spec"]["podSelector"]["matchLabels"] for kind in ("NetworkPolicy",) if kind in kinds},
    }
    for kind, selector in selectors.items():
        if not selector or not selector.items() <= labels:
            yield f"{kind} selects {selector}, which the pods are not"
    for port in service["spec"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"the Service's port {port['name']} is none of the container's"

    drain = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    (grace,) = (argument for argument in server["args"] if argument.startswith("--grace="))
    needed = drain + int(grace.removeprefix("--grace=").removesuffix("s"))
    if pod["terminationGracePeriodSeconds"] <= needed:
        yield f"the grace period is {pod['terminationGracePeriodSeconds']} s, the drain takes {needed}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if server[probe].get("grpc", {"port": ports["grpc"]})["port"] != ports["grpc"]:
            yield f"the {probe} asks another port"
    limits = server["resources"].get("limits", {})
    for resource, quantity in server["resources"].get("requests", {}).items():
        if resource in limits and parse_quantity(quantity) > parse_quantity(limits[resource]):
            yield f"requests {quantity} of {resource}, but {limits[resource]} is the limit"
    mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
    if mounts != {volume["name"] for volume in pod.get("volumes", [])}:
        yield "volumes and mounts differ"
    if any("gpu" in resource for resource in limits) != ("--backend=cuda" in server["args"]):
        yield "a GPU is asked for or used, not both"
    if any("/models/" in argument for argument in server["args"]) and "models" not in mounts:
        yield "models are named, but no volume has them"

    configs = [item["data"] for item in kinds.get("ConfigMap", []) if "envoy.yaml" not in item["data"]]
    for scaler in kinds.get("HorizontalPodAutoscaler", []):
        target = scaler["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) != ("StatefulSet", workload["metadata"]["name"]):
            yield "the autoscaler scales something else"
        if "replicas" in workload["spec"]:
            yield "the autoscaler and the chart both set the replicas"
        wanted = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
        for adapter in (yaml.safe_load(data["config.yaml"])["rules"] for data in configs if "config.yaml" in data):
            if (made := {rule["name"]["as"] for rule in adapter}) != wanted:
                yield f"the autoscaler asks for {wanted}, the adapter makes {made}"
            for series in (rule["seriesQuery"].partition("{")[0] for rule in adapter):
                if f'"{series}"' not in METRICS.read_text():
                    yield f"the adapter reads {series}, which the server does not have"
    for monitor in kinds.get("ServiceMonitor", []):
        if not monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items():
            yield "the ServiceMonitor does not find the Service"
        endpoint = monitor["spec"]["endpoints"][0]
        if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
            yield "the ServiceMonitor asks a port that the Service does not have"
        arguments = server["args"]
        has_tls = "--tls_cert=/tls/tls.crt" in arguments and "--metrics_tls=off" not in arguments
        asks_clients = "--tls_client_ca=/tls/ca.crt" in arguments and "--metrics_tls=on" not in arguments
        if (endpoint.get("scheme") == "https") != has_tls:
            yield "the ServiceMonitor and the server do not agree about TLS"
        if has_tls and ("keySecret" in endpoint["tlsConfig"]) != asks_clients:
            yield "the ServiceMonitor and the server do not agree about the scraper's certificate"
    for data in (data for data in configs if "config.yaml" not in data):
        wanted = {f"palimpsest-{file.name}": file.read_text() for file in DASHBOARDS.glob("*.json")}
        if not wanted or data != wanted:
            yield f"the dashboards are not those of {DASHBOARDS.relative_to(ROOT)}"
    for rule in kinds.get("PrometheusRule", []):
        groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
        if not groups or rule["spec"]["groups"] != groups:
            yield f"the PrometheusRule is not what {RULES.relative_to(ROOT)} says"


def proxy_errors(objects: list[Object]) -> Iterator[str]:
    """Of the proxy, where there is one: what Envoy says of its configuration, and whether it leads to the server."""
    (pod,) = (item["spec"]["template"]["spec"] for item in objects if item["kind"] == "StatefulSet")
    texts = [item["data"]["envoy.yaml"] for item in objects if "envoy.yaml" in item.get("data", {})]
    if len(texts) != len(pod["containers"]) - 1:
        yield "there is a proxy without a configuration, or one without a proxy"
    for text in texts:
        if "--host=127.0.0.1" not in pod["containers"][0]["args"] or "--port=50052" not in pod["containers"][0]["args"]:
            yield "the server can be reached beside the proxy"
        if "{address: 127.0.0.1, port_value: 50052}" not in text or "port_value: 50051}" not in text:
            yield "the proxy does not lead from the pod's port to the server"
        if any(volume["name"] == "tls" for volume in pod["volumes"]) != ("/tls/tls.crt" in text):
            yield "the proxy has a certificate that it does not use, or none"
        with tempfile.TemporaryDirectory() as folder:
            certificate = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", f"{folder}/tls.key"]
            subprocess.run(
                ["openssl", "req", "-x509", *certificate, "-out", f"{folder}/tls.crt"], check=True, capture_output=True
            )
            shutil.copy(f"{folder}/tls.crt", f"{folder}/ca.crt")
            (Path(folder) / "envoy.yaml").write_text(text.replace("/tls/", f"{folder}/"))
            command = [ENVOY, "--mode", "validate", "--log-level", "warning", "-c", f"{folder}/envoy.yaml"]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode != 0:
                yield f"Envoy refuses its configuration: {answer.stderr}"


def chart_errors(chart: Path) -> Iterator[str]:
    """All that is wrong, one line or paragraph each."""
    metadata = yaml.safe_load((chart / "Chart.yaml").read_text())
    version = re.search(r"project\(palimpsest VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    if metadata["version"] != version or metadata["appVersion"] != version:
        yield f"the chart is {metadata['version']} of {metadata['appVersion']}, the project {version}"
    kinds: set[str] = set()
    for path in sorted((chart / "ci").glob("*.yaml")):
        try:
            objects = render(chart, yaml.safe_load(path.read_text()))
        except HelmError as error:
            yield f"{path.name}: {error}"
            continue
        kinds |= {item["kind"] for item in objects}
        for item in objects:
            what = f"{path.name}: {item['kind']} {item['metadata']['name']}"
            yield from (f"{what}: {error}" for error in schema_errors(item))
            if item["kind"] == "StatefulSet":
                yield from (f"{what}: {error}" for error in restricted_errors(item["spec"]["template"]["spec"]))
        yield from (f"{path.name}: {error}" for error in (*meeting_errors(objects), *proxy_errors(objects)))
    for template in (
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PrometheusRule",
        "ServiceMonitor",
    ):
        if template not in kinds:
            yield f"no values file of ci/ renders a {template}"
    for values, reason in REFUSED:
        try:
            render(chart, values)
            yield f"values {values} are not refused"
        except HelmError as error:
            if reason not in str(error):
                yield f"values {values} are refused, but not for {reason!r}: {error}"


def main() -> int:
    """0 when all is well."""
    with tempfile.TemporaryDirectory() as folder:
        # Helm follows links, and says so for each each time: they are followed here.
        errors = list(chart_errors(Path(shutil.copytree(CHART, Path(folder) / CHART.name))))
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
