"""deploy/: each file against its schema, the settings, the options and the metrics that exist."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import kubernetes_validate
import promql_parser
import pytest
import yaml
from compose_spec import PyCompose
from prometheus_client.parser import text_string_to_metric_families

from guarded_servers import serving
from invoking import all_commands
from oneway.defenses.codebook import DriftTest
from oneway.serving import load_settings
from oneway.serving.base_app import GuardedServer
from oneway.serving.metrics import ServerMetrics
from oneway.serving.middleware import OPEN_ROUTES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
USER = 10001


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


# --- Image ---------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text("Dockerfile"), flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def test_the_dockerfile_is_without_a_remark_of_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(  # noqa: S603  the linter of this environment
        [hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def image_environment() -> dict[str, str]:
    given = [rest for name, rest in instructions() if name == "ENV"]
    return dict(pair.split("=", 1) for rest in given for pair in rest.split())


def test_the_image_runs_as_nobody_and_takes_what_is_there():
    last = [name for name, _ in instructions()][::-1].index("FROM")
    run = dict(instructions()[-last:])
    assert run["USER"] == f"{USER}:{USER}"
    assert json.loads(run["ENTRYPOINT"]) == ["oneway", "serve"]
    settings = load_settings(None, of_environment(image_environment()))
    assert run["EXPOSE"] == f"{settings.port} {settings.admin_port}"
    taken = [line[1:] for line in text("Dockerfile.dockerignore").splitlines() if line[:1] == "!"]
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    files = [file for some in copied for file in some if "--from" not in "".join(some)]
    assert sorted(files) == sorted(taken)
    assert all((ROOT / file).exists() for file in files)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = (rest for name, rest in instructions() if name == "ARG" and "EXTRAS" in rest)
    assert set(extras.partition("=")[2].split(",")) <= set(project["optional-dependencies"])


def test_the_health_check_tells_a_server_that_lives_from_one_that_is_gone():
    (check,) = (rest for name, rest in instructions() if name == "HEALTHCHECK")
    program, flag, code = json.loads(check.partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    assert "8001" in code

    def checked() -> int:
        probe = code.replace("8001", str(port))
        return subprocess.run(  # noqa: S603  the image's own command
            [sys.executable, "-I", "-c", probe], capture_output=True, check=False
        ).returncode

    with serving() as server:
        _, port = server.address()
        assert checked() == 0
    assert checked() != 0


# --- Compose and Kubernetes ----------------------------------------------------------------------


def of_environment(environment: dict[str, str]) -> dict[str, str]:
    prefix = "ONEWAY_SERVE_"
    names = [name for name in environment if name.startswith(prefix)]
    return {name.removeprefix(prefix).lower(): environment[name] for name in names}


def check_command(arguments: list[str]) -> None:
    """Refuse options that `oneway serve` does not have."""
    command: Any = cast(Any, all_commands()).commands["serve"]
    command.make_context("serve", list(arguments))


def settings_of(arguments: list[str], environment: dict[str, str]) -> Any:
    check_command(arguments)
    file = DEPLOY / "settings.toml" if "settings.toml" in " ".join(arguments) else None
    return load_settings(file, of_environment(image_environment() | environment))


def test_compose_publishes_the_guard_alone():
    whole = yaml.safe_load(text("compose.yaml"))
    PyCompose.from_yaml(yaml.safe_dump(whole)).validate()
    with pytest.raises(ValueError, match="read_onyl"):
        PyCompose.from_yaml(yaml.safe_dump(whole).replace("read_only", "read_onyl"))
    model, guard = whole["services"]["model"], whole["services"]["guard"]
    assert "ports" not in model
    assert model["networks"] == ["inside"]
    assert whole["networks"]["inside"]["internal"] is True
    assert guard["depends_on"] == {"model": {"condition": "service_healthy"}}
    for service in (model, guard):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "mem_limit" in service
    served = settings_of(model["command"], model["environment"])
    how = settings_of(guard["command"], {})
    assert guard["command"][0] == f"http://model:{served.port}/v2/models/{served.model_name}"
    assert guard["ports"] == [f"{how.port}:{how.port}"]
    assert str(how.token_file) == "/run/secrets/token"
    assert [mount.split(":")[1] for mount in guard["volumes"]][-1] == str(how.drift_folder)
    assert int(guard["stop_grace_period"].removesuffix("s")) > how.shutdown_seconds


def manifests() -> dict[str, dict[str, Any]]:
    every = list(yaml.safe_load_all(text("kubernetes.yaml")))
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in every}


def test_the_manifests_keep_to_kubernetes_schemas():
    for one in manifests().values():
        kubernetes_validate.validate(one, "1.37", strict=True)
    wrong = manifests()["Deployment/oneway"]
    wrong["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_pods_may_do_nothing_but_serve_with_the_settings_that_exist():
    pod = manifests()["Deployment/oneway"]["spec"]["template"]["spec"]
    (guard,) = pod["containers"]
    how = settings_of(guard["args"], {})
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == USER
    assert guard["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert {"memory", "cpu"} == set(guard["resources"]["limits"])
    ports = {port["name"]: port["containerPort"] for port in guard["ports"]}
    assert ports == {"http": how.port, "admin": how.admin_port}
    for kind in ("startup", "liveness", "readiness"):
        probe = guard[f"{kind}Probe"]["httpGet"]
        assert probe["port"] == "admin"
        assert probe["path"] in OPEN_ROUTES
    started = guard["startupProbe"]
    assert started["periodSeconds"] * started["failureThreshold"] > how.upstream_wait_seconds
    pause = guard["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + how.shutdown_seconds
    mounts = [mount["mountPath"] for mount in guard["volumeMounts"]]
    assert {str(how.drift_folder), str(how.token_file.parent)} <= set(mounts)


def test_what_the_manifests_name_is_made_and_only_the_guard_reaches_the_model():
    made = yaml.safe_load(text("kustomization.yaml"))
    names = {one["name"] for one in made["secretGenerator"] + made["configMapGenerator"]}
    pod = manifests()["Deployment/oneway"]["spec"]["template"]
    wanted = {
        volume["configMap"]["name"] if "configMap" in volume else volume["secret"]["secretName"]
        for volume in pod["spec"]["volumes"]
        if "emptyDir" not in volume
    }
    assert wanted == names
    assert made["images"][0]["name"] == pod["spec"]["containers"][0]["image"]
    labels = pod["metadata"]["labels"]
    policy = manifests()["NetworkPolicy/model-behind-oneway"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": labels}}]
    guard = manifests()["NetworkPolicy/oneway"]["spec"]
    assert guard["podSelector"]["matchLabels"] == labels
    open_to_all = [rule for rule in guard["ingress"] if "from" not in rule]
    assert [rule["ports"] for rule in open_to_all] == [[{"port": 8000}]]
    reached = [rule["to"][0].get("podSelector") for rule in guard["egress"]]
    assert policy["podSelector"] in reached
    for name in ("Service/oneway", "PodDisruptionBudget/oneway"):
        selector = manifests()[name]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels


# --- Metrics -------------------------------------------------------------------------------------


def served_metrics() -> dict[str, set[str]]:
    """Return the labels of each series that `/metrics` gives."""
    metrics = ServerMetrics(
        {"guard": "codebook", "guard_version": "7"},
        cast(DriftTest, SimpleNamespace(drift=None)),
    )
    assert GuardedServer.infer.__name__ == "infer"
    metrics.requests.labels("infer", "200").inc()
    metrics.seconds.labels("infer").observe(1)
    metrics.refused.labels("busy").inc()
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            series.setdefault(sample.name, {"instance"}).update(sample.labels)
    return series


def selectors(query: Any) -> list[Any]:
    if isinstance(query, promql_parser.VectorSelector):
        return [query]
    inner = [getattr(query, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
    inner += getattr(query, "args", None) or []
    return [found for part in inner if part is not None for found in selectors(part)]


def queries() -> dict[str, str]:
    board = json.loads(text("grafana.json"))
    asked = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    (group,) = yaml.safe_load(text("alerts.yaml"))["groups"]
    return asked | {rule["alert"]: rule["expr"] for rule in group["rules"]}


def test_dashboard_and_alerts_ask_for_metrics_that_are_there():
    series, asked = served_metrics(), set()
    for title, query in queries().items():
        parsed = promql_parser.parse(query.replace("$__rate_interval", "5m"))
        found = selectors(parsed)
        assert found, title
        for selector in found:
            assert selector.name in series, title
            labels = {one.name for one in selector.matchers.matchers}
            assert labels <= series[selector.name], title
            asked.add(selector.name)
    unasked = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in series}
    unasked -= {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in asked}
    assert unasked == set(), "the dashboard shows all there is"


def test_the_dashboard_s_panels_do_not_overlap_and_alerts_have_what_prometheus_asks_for():
    board = json.loads(text("grafana.json"))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in board["panels"]}) == len(places)
    (variables,) = ({one["name"] for one in board["templating"]["list"]},)
    assert set(re.findall(r"\$\{?(\w+)", text("grafana.json"))) <= variables | {"__rate_interval"}
    (group,) = yaml.safe_load(text("alerts.yaml"))["groups"]
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["annotations"]["summary"]
