"""The Helm chart with every optional value on and off: Kubernetes' own schemas, what is granted, and what the agent reads.

There is no cluster here: objects are held against the schemas of Kubernetes' releases, helm renders, and the agent is given
the settings that come out.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from stucktrace import privileges, settings

from tests.harness import chart, command

DEBUG_POD = chart.PACKAGING / "kubernetes" / "debug-pod.yaml"
DEBUG_CONTAINER = chart.PACKAGING / "kubernetes" / "debug-container.yaml"
LATEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
KUBERNETES = ("1.25", "1.29", chart.KUBERNETES, "1.33", LATEST)
"""The chart's first, the last without appArmorProfile, the manifests' first, the first with nodes/pods, the last."""
EVERYTHING = {
    "image": {"repository": "registry.example.com/team/stucktrace", "digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "namespace": {"create": True},
    "config": {
        "agent": {"interval": 0.5, "stuck_after": 45, "match": r'say "hi" \d+ <&>', "node": "knöten"},
        "otlp": {"endpoint": "http://collector.monitoring:4318"},
        "sentry": {"environment": "production"},
        "kubernetes": {"pods": "api"},
    },
    "metrics": {"address": "[::]", "port": 19464},
    "sentry": {"secret": "dsn"},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "serviceAccount": {"name": "other", "annotations": {"a": "b"}},
    "capabilities": ["BPF", "PERFMON", "SYS_PTRACE"],
    "seccomp": {"type": "Localhost"},
    "seLinuxOptions": {"type": "spc_t"},
    "priorityClass": {"value": -5},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "web", "operator": "Exists"}]}]
            }
        }
    },
    "state": {"hostPath": "/var/lib/stucktrace"},
    "bcc": {"headers": True},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
    },
    "podAnnotations": {"c": "d"},
    "podLabels": {"e": "f"},
}
NOTHING = {
    "config": {"spool": None, "journal": None},
    "metrics": {"enabled": False},
    "rbac": {"create": False},
    "serviceAccount": {"create": False},
    "capabilities": [],
    "networkNamespaces": {"enter": False},
    "seccomp": {"type": "Unconfined"},
    "resources": {},
    "priorityClass": {"create": False},
    "tolerations": [],
    "nodeSelector": {"kubernetes.io/os": None},
    "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
    "networkPolicy": {"enabled": False},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "nothing": NOTHING,
    "kubelet": {"config": {"kubernetes": {"pods": "kubelet"}}, "priorityClass": {"create": False, "name": "system"}},
}


def rendered(variant: str, folder: Path, kubernetes: str = chart.KUBERNETES) -> list[dict[str, Any]]:
    values = folder / f"{variant}.yaml"
    values.write_text(yaml.safe_dump(VARIANTS[variant], allow_unicode=True))
    return chart.objects(f"--values={values}", kubernetes=kubernetes)


def agent_of(documents: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The DaemonSet's pod and its container."""
    pod = chart.of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_helm_finds_nothing_wrong(tmp_path: Path):
    for name, variant in VARIANTS.items():
        values = tmp_path / "values.yaml"
        values.write_text(yaml.safe_dump(variant))
        said = chart.helm("lint", "--strict", chart.CHART, f"--values={values}")
        assert "[WARNING]" not in said and "[ERROR]" not in said, f"{name}: {said}"


@pytest.mark.parametrize("version", KUBERNETES)
def test_whatever_is_chosen_follows_kubernetes_schemas(version: str, tmp_path: Path):
    seen = set()
    for variant in VARIANTS:
        documents = rendered(variant, tmp_path, version)
        for document in documents:
            kubernetes_validate.validate(document, version, strict=True)
        seen |= {document["kind"] for document in documents}
        names = [(document["kind"], document["metadata"]["name"]) for document in documents]
        assert len(names) == len(set(names))
        for document in documents:
            cluster = document["kind"] in {"Namespace", "ClusterRole", "ClusterRoleBinding", "PriorityClass"}
            assert document["metadata"].get("namespace") == (None if cluster else "stucktrace"), document
    assert seen >= {
        "Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "PriorityClass", "NetworkPolicy",
        "DaemonSet",
    }  # fmt: skip


def test_the_manifests_are_what_the_chart_gives():
    assert chart.MANIFEST.read_text() == chart.manifest(), "run `make manifests`"
    for document in yaml.safe_load_all(chart.MANIFEST.read_text()):
        kubernetes_validate.validate(document, LATEST, strict=True)


@pytest.mark.parametrize("version", [chart.KUBERNETES, LATEST])
def test_the_debug_pod_may_what_the_agent_may_and_capture(version: str):
    (debug,) = yaml.safe_load_all(DEBUG_POD.read_text())
    kubernetes_validate.validate(debug, version, strict=True)
    of_debug, of_agent = debug["spec"]["containers"][0], agent_of(chart.objects())[1]
    assert of_debug["image"] == of_agent["image"]
    wanted, given = of_agent["securityContext"], of_debug["securityContext"]
    assert given.pop("capabilities")["add"] == [*wanted.pop("capabilities")["add"], *privileges.ENTERING, "NET_RAW"]
    assert given == wanted and debug["spec"]["hostPID"] and not debug["spec"]["automountServiceAccountToken"]
    beside = {"name": "debugger", "image": "stucktrace", **yaml.safe_load(DEBUG_CONTAINER.read_text())}
    debug["spec"]["ephemeralContainers"] = [{**beside, "targetContainerName": "web"}]
    kubernetes_validate.validate(debug, version, strict=True)


def test_pods_are_named_with_the_least_that_lets_them(tmp_path: Path):
    off = rendered("defaults", tmp_path)
    assert not agent_of(off)[0]["automountServiceAccountToken"]
    assert not [one for one in off if one["kind"].startswith(("ClusterRole", "Role"))]
    for variant, version, wanted in (
        ("everything", "1.30", (["pods"], ["list"])),
        ("kubelet", LATEST, (["nodes/pods"], ["get"])),
        ("kubelet", "1.32", (["nodes/proxy"], ["get"])),
    ):
        documents = rendered(variant, tmp_path, version)
        pod, container = agent_of(documents)
        (rule,) = chart.of_kind(documents, "ClusterRole")["rules"]
        assert (rule["resources"], rule["verbs"]) == wanted
        binding = chart.of_kind(documents, "ClusterRoleBinding")
        assert binding["roleRef"]["name"] == chart.of_kind(documents, "ClusterRole")["metadata"]["name"]
        (subject,) = binding["subjects"]
        assert subject["name"] == pod["serviceAccountName"] and pod["automountServiceAccountToken"]
        assert chart.of_kind(documents, "ServiceAccount")["metadata"]["name"] == pod["serviceAccountName"]
        assert (variant == "kubelet") == ("NODE_IP" in {one["name"] for one in container["env"]})


def test_the_pod_is_granted_what_the_table_of_privileges_says(tmp_path: Path):
    for options, wanted in (
        ((), privileges.AGENT),
        (("--set=networkNamespaces.enter=true",), (*privileges.AGENT, *privileges.ENTERING)),
    ):
        _, container = agent_of(chart.objects(*options))
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": list(wanted)}


def test_the_pod_is_as_closed_as_it_can_be(tmp_path: Path):
    for variant in VARIANTS:
        pod, container = agent_of(rendered(variant, tmp_path))
        security = container["securityContext"]
        assert pod["hostPID"] and not {"hostNetwork", "hostIPC"} & pod.keys()
        assert security["readOnlyRootFilesystem"] and security["capabilities"]["drop"] == ["ALL"]
        assert not security["allowPrivilegeEscalation"] and not security["privileged"]
        writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        from_node = {volume["name"] for volume in pod["volumes"] if "hostPath" in volume}
        assert (writable & from_node, from_node) == {
            "everything": ({"state"}, {"state", "modules", "headers"}),
        }.get(variant, (set(), set()))


def test_a_profile_of_its_own_is_brought_to_the_node():
    documents = chart.objects("--set=seccomp.type=Localhost,seccomp.install=true")
    for document in documents:
        kubernetes_validate.validate(document, chart.KUBERNETES, strict=True)
    pod, container = agent_of(documents)
    (brings,) = pod["initContainers"]
    target = container["securityContext"]["seccompProfile"]["localhostProfile"]
    assert brings["command"][-1] == f"/kubelet/{target}"
    assert brings["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    profiles = [one["data"] for one in documents if one["kind"] == "ConfigMap" and "seccomp.json" in one["data"]]
    (profile,) = profiles
    assert json.loads(profile["seccomp.json"]) == json.loads((chart.PACKAGING / "seccomp.json").read_text())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_agent_takes_its_settings(variant: str, tmp_path: Path):
    documents = rendered(variant, tmp_path)
    _, container = agent_of(documents)
    text = chart.of_kind(documents, "ConfigMap")["data"]["agent.toml"]
    config = tmp_path / "agent.toml"
    config.write_text(text)
    environ = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    done = command.run("agent", "--check-config", "--config", str(config), env=environ)
    assert done.status == 0 and done.stderr == "", f"{done}\n{text}"
    found = tomllib.loads(text)
    for table, keys in VARIANTS[variant].get("config", {}).items():
        for key, value in (keys or {}).items():
            assert found[table][key] == value and isinstance(found[table][key], type(value)), text
    mounts = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    assert all(found[name]["dir"].startswith(mounts) for name in ("spool", "journal") if name in found)
    if variant == "nothing":
        assert not {"metrics", "spool", "journal"} & found.keys()
        assert not {"ports", "startupProbe", "livenessProbe", "readinessProbe"} & container.keys()
    else:
        (port,) = container["ports"]
        assert found["metrics"]["listen"].endswith(f":{port['containerPort']}")
        assert {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe")} == {port["name"]}


def test_every_setting_of_the_agent_can_be_given():
    """But secrets, which come from Secrets as variables, and the metrics' address, which the chart writes."""
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    tables = schema["properties"]["config"]["properties"]
    given = {f"{table}.{key}" for table, keys in tables.items() for key in keys["properties"]}
    wanted = {key.path for key in settings.KEYS if not key.secret} - {"metrics.listen"}
    assert given == wanted, f"values.schema.json has {given - wanted} too many, {wanted - given} too few"


def test_every_value_is_known_and_no_other(tmp_path: Path):
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}
    used = "".join(path.read_text() for path in (chart.CHART / "templates").iterdir())
    for name, value in values.items():
        whole = re.search(rf"\.Values\.{name}( |\b[^.])", used)
        for key in value if isinstance(value, dict) and not whole else ():
            assert re.search(rf"\.Values\.{name}\.{key}\b", used), f"{name}.{key} is not used"
    for wrong in (
        "metrics.prot=1", "config.agent.intervall=1", "config.sentry.dsn=https://key@host/1", "capabilities={ALL}",
        "image.digest=sha256:1", "seccomp.install=true", "seccomp.localhostProfile=../../etc/x", "config.agent.engine=fast",
        "priorityClass.value=2000000000", "config.kubernetes.pods=all",
    ):  # fmt: skip
        said = chart.helm("template", "x", chart.CHART, f"--set={wrong}", refused=True)
        assert "values.schema.json" in said or "schema" in said, said


def test_the_version_is_that_of_the_command():
    version = tomllib.loads((chart.PACKAGING.parent / "pyproject.toml").read_text())["project"]["version"]
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (version, version)
    assert f'image.version="{version}"' in (chart.PACKAGING / "Containerfile").read_text()
    assert f"stucktrace:{version}" in DEBUG_POD.read_text()
