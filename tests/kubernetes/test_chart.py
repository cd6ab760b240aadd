"""The Helm chart: it is what the kustomization is, and its values are checked."""

from __future__ import annotations

import copy
import hashlib
import json
import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lxcfs_py import __version__
from tests.conftest import ROOT
from tests.kubernetes.test_manifests import DAEMON, MANIFESTS, VERSIONS, WEBHOOK, render
from tools import chart

CHART = ROOT / "charts/lxcfs-py"
META = yaml.safe_load((CHART / "Chart.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
EVERYTHING = {"webhook": {"enabled": True, "replicas": 2}, "podMonitor": {"enabled": True}}


def filled(template, values, namespace="lxcfs-py"):
    """A template as Helm fills it, as far as this chart goes: values, defaults, sums, indents and conditions."""
    scope = {"Values": values, "Release": {"Namespace": namespace}, "Chart": {"AppVersion": META["appVersion"]}}

    def value(path):
        found = scope
        for name in path.strip(". ").split("."):
            found = found[name]
        return found

    def fill(match):
        first, *pipes = (word.strip() for word in match[1].split("|"))
        result = value(first)
        for pipe in pipes:
            name, *arguments = pipe.split()
            if name == "default":
                result = result or value(arguments[0])
            elif name == "sha256sum":
                result = hashlib.sha256(result.encode()).hexdigest()
            elif name == "quote":
                result = json.dumps(result)
            elif name == "indent":
                blanks = " " * int(arguments[0])
                result = "\n".join(f"{blanks}{line}" for line in result.split("\n"))
            else:
                pytest.fail(f"the test knows no {name}")
        return str(result)

    condition = re.fullmatch(r"\{\{- if (?:and )?(\S+(?: \S+)*) \}\}\n(.*)\{\{- end \}\}\n", template, re.DOTALL)
    if condition:
        template = condition[2] if all(map(value, condition[1].split())) else ""
    return re.sub(r"\{\{ (.*?) \}\}", fill, template)


def objects(values, namespace="lxcfs-py"):
    """What the chart installs, by kind and name."""
    values = {**copy.deepcopy(VALUES), **values}
    jsonschema.validate(values, SCHEMA)
    texts = [filled(path.read_text(), values, namespace) for path in sorted((CHART / "templates").glob("*.yaml"))]
    found = [item for text in texts for item in yaml.safe_load_all(text) if item]
    return {(item["kind"], item["metadata"]["name"]): item for item in found}


@pytest.mark.parametrize("webhook", [False, True])
def test_prometheus_is_told_of_the_webhook_only_where_it_runs(webhook):
    found = objects({"podMonitor": {"enabled": True}, "webhook": {"enabled": webhook, "replicas": 1}})
    monitors = {name for kind, name in found if kind == "PodMonitor"}
    assert monitors == {"lxcfs-py"} | ({"lxcfs-py-webhook"} if webhook else set())


def test_its_templates_are_made_from_the_manifests():
    assert chart.stale() == []
    assert {path.name for path in chart.TEMPLATES.iterdir()} == {each.name for each in chart.templates()}


def test_it_installs_what_the_kustomization_does(require):
    expected = render(MANIFESTS, require)
    found = objects({})
    del expected["Namespace", "lxcfs-py"]
    (hashed,) = [name for kind, name in expected if kind == "ConfigMap"]
    config = expected.pop(("ConfigMap", hashed))
    del found[DAEMON]["spec"]["template"]["metadata"]["annotations"]
    settings = found.pop(("ConfigMap", "lxcfs-py"))["data"]["lxcfs.toml"]
    assert settings.split() == re.sub("(?m)^#.*", "", config["data"]["lxcfs.toml"]).split()
    by_json = json.loads(
        json.dumps({" ".join(key): item for key, item in expected.items()}).replace(hashed, "lxcfs-py")
    )
    assert {" ".join(key): item for key, item in found.items()} == by_json


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_all_of_it_in_another_namespace(version):
    found = objects(EVERYTHING, "views")
    assert WEBHOOK in found
    for item in found.values():
        if not item["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(item, version, strict=True)
        if not item["kind"].startswith(("Cluster", "Mutating")):
            assert item["metadata"]["namespace"] == "views"
    assert "namespace: lxcfs-py" not in yaml.safe_dump_all(found.values())
    assert "lxcfs-py.svc" not in yaml.safe_dump_all(found.values())


@pytest.mark.parametrize("config", ["  # indented\n[cpu]\nmode = 'quota'\n", "\n\t[cpu]\n"])
@pytest.mark.parametrize("namespace", ["123", "true", "on", "null", "1e3"])
def test_what_yaml_would_take_otherwise_comes_as_it_is(namespace, config):
    found = objects({**EVERYTHING, "config": config}, namespace)
    assert found["ConfigMap", "lxcfs-py"]["data"]["lxcfs.toml"].rstrip("\n") == config.rstrip("\n")
    assert {item["metadata"].get("namespace", namespace) for item in found.values()} == {namespace}
    system = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", namespace]}
    hooks = found["MutatingWebhookConfiguration", "lxcfs-py-webhook"]["webhooks"]
    assert all(system in hook["namespaceSelector"]["matchExpressions"] for hook in hooks)


def test_another_configuration_is_a_rollout():
    before, after = (objects({"config": config}) for config in ("a = 1\n", "a = 2\n"))
    assert before[DAEMON]["spec"]["template"] != after[DAEMON]["spec"]["template"]


OF_OTHERS = ("global", "enabled")  # Helm's own, and what a chart with this one in it has for its `condition`


def leaves(schema, path=()):
    """The schema of each value, by the names that lead to it."""
    for name, each in schema["properties"].items():
        if "properties" in each:
            yield from leaves(each, (*path, name))
        elif path or name not in OF_OTHERS:
            yield (*path, name), each


def with_value(values, path, value):
    changed = copy.deepcopy(values)
    *above, name = path
    found = changed
    for each in above:
        found = found[each]
    found[name] = value
    return changed


def others(schema, value):
    """Values that the schema allows, and that are not this one."""
    if "enum" in schema:
        return [each for each in schema["enum"] if each != value]
    return [{"boolean": not value, "integer": 7, "string": f"other-{len(str(value))}"}[schema["type"]]]


LEAVES = [pytest.param(path, schema, id=".".join(path)) for path, schema in leaves(SCHEMA)]


def test_the_schema_knows_the_values_that_there_are():
    def names(values, path=()):
        for name, each in values.items():
            yield from names(each, (*path, name)) if isinstance(each, dict) else [(*path, name)]

    assert set(names(VALUES)) == {path for path, _ in leaves(SCHEMA)}


@pytest.mark.parametrize(("path", "schema"), LEAVES)
def test_every_value_changes_what_is_installed(path, schema):
    *above, name = path
    before = copy.deepcopy({**VALUES, **EVERYTHING})
    found = before
    for each in above:
        found = found[each]
    for value in others(schema, found[name]):
        assert objects(with_value(before, path, value)) != objects(before)


@pytest.mark.parametrize(("path", "schema"), LEAVES)
def test_a_value_of_another_type_is_refused(path, schema):
    for wrong in ([], None, {"a": 1}):
        with pytest.raises(jsonschema.ValidationError):
            objects(with_value({**VALUES, **EVERYTHING}, path, wrong))


def test_the_images_name_tag_and_policy_are_the_daemons_and_the_webhooks():
    image = {"repository": "registry.example/lxcfs-py", "tag": "next", "pullPolicy": "Always"}
    found = objects({**EVERYTHING, "image": image})
    for workload in (DAEMON, WEBHOOK):
        (container,) = found[workload]["spec"]["template"]["spec"]["containers"]
        assert (container["image"], container["imagePullPolicy"]) == ("registry.example/lxcfs-py:next", "Always")
    assert objects({**EVERYTHING, "webhook": {"enabled": True, "replicas": 5}})[WEBHOOK]["spec"]["replicas"] == 5


@pytest.mark.parametrize("enabled", [True, False])
def test_a_chart_that_has_this_one_in_it_may_say_by_a_value_whether_it_is_installed(enabled):
    assert objects({"enabled": enabled, "global": {"region": "x"}}) == objects({})


@pytest.mark.parametrize(
    "wrong",
    [
        {"enabled": "no"},
        {"webhooks": {}},
        {"config": 1},
        {"webhook": {"enabled": "yes", "replicas": 2}},
        {"image": {"repository": ""}},
    ],
)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(jsonschema.ValidationError):
        objects(wrong)


def test_it_has_the_programs_version():
    assert (META["version"], META["appVersion"]) == (__version__, __version__)
