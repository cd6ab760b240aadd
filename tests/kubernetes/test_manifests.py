"""The manifests: they render, Kubernetes takes them, and what they say of each other and of the program is true."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from lxcfs_py import __version__, cli, config
from lxcfs_py.attach import nri
from lxcfs_py.commands import common
from lxcfs_py.engine import node_keeper
from lxcfs_py.runtimes.bind_snippets import binds_of, kubernetes_volumes
from tests.conftest import ROOT

VERSIONS = ("1.27", kubernetes_validate.latest_version())
MANIFESTS = ROOT / "kubernetes"
EXAMPLES = sorted((MANIFESTS / "examples").glob("*.yaml"))
DAEMON = ("DaemonSet", "lxcfs-py")
WEBHOOK = ("Deployment", "lxcfs-py-webhook")


def render(directory, require):
    """What `kubectl apply --kustomize` sends, by kind and name."""
    kubectl = shutil.which("kubectl")
    require(kubectl, "kubectl: apt-get install kubernetes-client")
    done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    named = {(item["kind"], item["metadata"]["name"]): item for item in objects}
    assert len(named) == len(objects)
    return named


@pytest.fixture(scope="module")
def rendered(require):
    """What would be applied with every component that can be chosen."""
    with tempfile.TemporaryDirectory() as copied:
        tree = Path(copied, "kubernetes")
        shutil.copytree(MANIFESTS, tree)
        file = tree / "kustomization.yaml"
        file.write_text(file.read_text().replace("# - components/", "- components/"))
        return render(tree, require)


def container(workload):
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    return found


@pytest.fixture(scope="module")
def default(require):
    """What is applied as it comes, without any component that has to be chosen."""
    return render(MANIFESTS, require)


@pytest.fixture(scope="module")
def removal(require):
    """What takes all of it from the nodes."""
    return render(MANIFESTS / "remove", require)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("what", ["rendered", "default", "removal"])
def test_kubernetes_takes_what_is_rendered(what, version, request):
    items = request.getfixturevalue(what).values()
    assert len(items) >= 5
    for item in items:
        if not item["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_kubernetes_takes_the_examples(file, version):
    for item in yaml.safe_load_all(file.read_text()):
        if not item["apiVersion"].startswith("cert-manager.io/"):
            kubernetes_validate.validate(item, version, strict=True)
        assert {"apiVersion", "kind", "metadata", "spec"} >= item.keys()


def test_the_daemons_options_are_the_programs(rendered):
    options = cli.parser().parse_args(container(rendered[DAEMON])["args"])
    assert options.keep
    assert options.stay


def test_the_webhooks_options_name_its_service_and_its_configuration(rendered):
    options = cli.parser().parse_args(container(rendered[WEBHOOK])["args"])
    name = options.self_signed
    hooks = rendered["MutatingWebhookConfiguration", name]["webhooks"]
    paths = {hook["clientConfig"]["service"]["path"] for hook in hooks}
    assert paths == {"/all", "/opt-in", "/all/forbidden", "/opt-in/forbidden"}
    for hook in hooks:
        service = hook["clientConfig"]["service"]
        assert rendered["Service", service["name"]]["metadata"]["namespace"] == service["namespace"]
        assert service["name"] == name
    assert rendered["Service", name]["spec"]["selector"].items() <= (
        rendered[WEBHOOK]["spec"]["template"]["metadata"]["labels"].items()
    )
    for role in ("Role", "ClusterRole"):
        named = [rule["resourceNames"] for rule in rendered[role, name]["rules"] if "resourceNames" in rule]
        assert named == [[name]]


def test_the_webhook_can_never_stop_a_cluster(rendered):
    for hook in rendered["MutatingWebhookConfiguration", "lxcfs-py-webhook"]["webhooks"]:
        assert hook["failurePolicy"] == "Ignore"
        assert hook["timeoutSeconds"] <= 5
        assert hook["sideEffects"] == "None"
        expressions = {item["key"]: item for item in hook["namespaceSelector"]["matchExpressions"]}
        assert expressions["lxcfs.py/views"]["operator"] == "In"
        assert expressions["kubernetes.io/metadata.name"]["values"] == ["kube-system", "lxcfs-py"]


def test_a_namespace_that_forbids_hostpath_is_asked_about_only_to_tell_its_users(rendered):
    def standards(hook):
        (found,) = [
            (item["operator"], item["values"])
            for item in hook["namespaceSelector"]["matchExpressions"]
            if item["key"] == "pod-security.kubernetes.io/enforce"
        ]
        return found

    hooks = rendered["MutatingWebhookConfiguration", "lxcfs-py-webhook"]["webhooks"]
    for hook in hooks:
        forbidden = hook["clientConfig"]["service"]["path"].endswith("/forbidden")
        assert standards(hook) == ("In" if forbidden else "NotIn", ["baseline", "restricted"])


def test_the_namespace_has_a_quota_for_the_priorities_of_its_pods(rendered):
    (expression,) = rendered["ResourceQuota", "lxcfs-py"]["spec"]["scopeSelector"]["matchExpressions"]
    classes = {rendered[name]["spec"]["template"]["spec"]["priorityClassName"] for name in (DAEMON, WEBHOOK)}
    assert (expression["scopeName"], set(expression["values"])) == ("PriorityClass", classes)


@pytest.mark.parametrize(("policy", "workload"), [("lxcfs-py", DAEMON), ("lxcfs-py-webhook", WEBHOOK)])
def test_the_network_reaches_no_more_of_a_pod_than_its_named_port(rendered, policy, workload):
    spec = rendered["NetworkPolicy", policy]["spec"]
    assert spec["podSelector"] == rendered[workload]["spec"]["selector"]
    ports = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
    assert ports == [port["name"] for port in container(rendered[workload])["ports"]]
    (monitor,) = rendered["PodMonitor", policy]["spec"]["podMetricsEndpoints"]
    assert [monitor["port"]] == ports


def test_a_drain_takes_one_webhook_at_a_time_and_also_the_only_one(rendered):
    budget = rendered["PodDisruptionBudget", "lxcfs-py-webhook"]["spec"]
    assert budget["selector"] == rendered[WEBHOOK]["spec"]["selector"]
    assert (budget["maxUnavailable"], budget.get("minAvailable")) == (1, None)


def test_without_a_component_there_is_a_daemonset_and_no_webhook(default):
    assert DAEMON in default
    assert not [kind for kind, _ in default if "Webhook" in kind or kind == "Deployment"]


def test_the_document_deletes_all_of_the_webhooks_objects(rendered, default):
    document = (ROOT / "docs/kubernetes.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    kubectl.* delete (?:--\S+ +)*(\S+) lxcfs-py-webhook$", document, re.MULTILINE)
    deleted = {kind for kinds in commands for kind in kinds.split(",")}
    assert deleted == {kind.lower() for kind, _ in {*rendered} - {*default} if kind != "PodMonitor"} | {"secret"}


def test_probes_ask_the_server_and_no_path_or_port(default):
    daemon = container(default[DAEMON])
    for probe, here in (("startupProbe", True), ("readinessProbe", True), ("livenessProbe", False)):
        program, *arguments = daemon[probe]["exec"]["command"]
        options = cli.parser().parse_args(arguments)
        assert (program, options.probe, options.here) == ("lxcfs-py", True, here)


def test_the_daemon_reaches_whom_it_speaks_with(default):
    mounts = {mount["name"]: mount["mountPath"] for mount in container(default[DAEMON])["volumeMounts"]}
    assert node_keeper.BUS.startswith(f"{mounts['dbus']}/")
    assert nri.SOCKET.removeprefix("/var").startswith(f"{mounts['nri']}/")  # /var/run is /run in the image


def test_removal_replaces_the_daemon_on_every_node_and_serves_nothing(default, removal):
    daemon, remover = (each[DAEMON]["spec"] for each in (default, removal))
    assert remover["selector"] == daemon["selector"]
    pod = remover["template"]["spec"]
    (init,) = pod["initContainers"]
    assert cli.parser().parse_args(init["args"]).command
    assert [each["name"] for each in pod["containers"]] == ["removed"]
    assert pod["containers"][0]["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in pod["volumes"]}
    for mount in init["volumeMounts"]:
        assert volumes[mount["name"]] in (mount["mountPath"], None)
    assert init["image"] == container(default[DAEMON])["image"]
    made = [volume for volume in pod["volumes"] if volume.get("hostPath", {}).get("type") == "DirectoryOrCreate"]
    assert not made, "which stays on the node"


def test_the_new_pod_comes_before_the_old_one_goes(rendered):
    strategy = rendered[DAEMON]["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_the_pods_go_by_the_configuration_and_it_is_right(rendered):
    (name,) = [name for kind, name in rendered if kind == "ConfigMap"]
    text = rendered["ConfigMap", name]["data"]["lxcfs.toml"]
    parsed = config.parse(text.encode(), "lxcfs.toml")
    for workload in (rendered[DAEMON], rendered[WEBHOOK]):
        volumes = {volume["name"]: volume for volume in workload["spec"]["template"]["spec"]["volumes"]}
        mounts = {mount["name"]: mount for mount in container(workload)["volumeMounts"]}
        assert volumes["config"]["configMap"]["name"] == name
        assert (mounts["config"]["mountPath"], mounts["config"]["subPath"]) == (common.CONFIG_PATH, "lxcfs.toml")
    daemon = container(rendered[DAEMON])
    assert {port["name"]: port["containerPort"] for port in daemon["ports"]} == {
        "metrics": int(parsed.metrics.listen.rpartition(":")[2])
    }


def test_the_image_is_the_one_that_is_built(rendered):
    images = {container(rendered[workload])["image"] for workload in (DAEMON, WEBHOOK)}
    assert images == {f"lxcfs-py:{__version__}"}


def test_the_mounts_by_hand_are_what_the_program_prints():
    (deployment,) = yaml.safe_load_all((MANIFESTS / "examples/by-hand.yaml").read_text())
    spec = deployment["spec"]["template"]["spec"]
    volumes = kubernetes_volumes(binds_of(config.Config()))
    assert spec["volumes"] == [
        {"name": volume.name, "hostPath": {"path": volume.source, "type": volume.type}} for volume in volumes
    ]
    assert [(mount["name"], mount["mountPath"]) for mount in spec["containers"][0]["volumeMounts"]] == [
        (volume.name, volume.target) for volume in volumes
    ]


def test_cert_managers_certificate_is_the_webhooks(rendered):
    items = list(yaml.safe_load_all((MANIFESTS / "examples/cert-manager.yaml").read_text()))
    (certificate,) = [item for item in items if item["metadata"]["name"] == "lxcfs-py-webhook"]
    service = rendered["Service", "lxcfs-py-webhook"]["metadata"]
    assert certificate["spec"]["secretName"] == service["name"]
    assert f"{service['name']}.{service['namespace']}.svc" in certificate["spec"]["dnsNames"]
    issuers = {item["metadata"]["name"] for item in items if item["kind"] == "Issuer"}
    assert {item["spec"]["issuerRef"]["name"] for item in items if item["kind"] == "Certificate"} == issuers
