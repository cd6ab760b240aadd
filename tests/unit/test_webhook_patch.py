"""What the webhook adds to a pod."""

from __future__ import annotations

import base64
import copy
import json

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.config import Config, Files
from lxcfs_py.runtimes.bind_snippets import binds_of, kubernetes_volumes
from lxcfs_py.runtimes.names import KEY
from lxcfs_py.runtimes.nri.policy import Container, Pod, Policy
from lxcfs_py.webhook import review
from lxcfs_py.webhook.patch import _EVICTABLE as EVICTABLE
from lxcfs_py.webhook.patch import ShapeError, of_ephemeral_containers, of_pod

CONTAINER = Container("c", "p", "web", False, (), (), ("pid",), 0, 0)
TWO = kubernetes_volumes(binds_of(Config(files=Files(enabled=("proc/meminfo", "sys/devices/system/cpu")))))
ALL = kubernetes_volumes(binds_of(Config()))
MEMINFO = {"name": "lxcfs-proc-meminfo", "hostPath": {"path": "/var/lib/lxcfs/proc/meminfo", "type": "File"}}
CPU = {
    "name": "lxcfs-sys-devices-system-cpu",
    "hostPath": {"path": "/var/lib/lxcfs/sys/devices/system/cpu", "type": "Directory"},
}


def mount(name, path):
    return {"name": name, "mountPath": path, "readOnly": True, "mountPropagation": "HostToContainer"}


BOTH = [
    mount("lxcfs-proc-meminfo", "/proc/meminfo"),
    mount("lxcfs-sys-devices-system-cpu", "/sys/devices/system/cpu"),
]


def a_pod(*mounts, metadata=None, **spec):
    container = {"name": "main", "image": "x", **({"volumeMounts": list(mounts)} if mounts else {})}
    return {"metadata": {"name": "a", **(metadata or {})}, "spec": {"containers": [container], **spec}}


def patched(pod, volumes=TWO, opt_in=False):
    """The pod as it becomes; the patch leaves its argument alone."""
    before = copy.deepcopy(pod)
    patch = of_pod(pod, volumes, opt_in)
    assert pod == before
    return jsonpatch.apply_patch(pod, patch.operations)


def a_review(pod, **more):
    request = {
        "uid": "4711",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "operation": "CREATE",
        "object": pod,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request, **more}


def own(name, **volume):
    return {"name": name, **volume}


def test_a_pod_gets_the_volumes_and_each_container_the_mounts():
    pod = a_pod(initContainers=[{"name": "first"}, {"name": "second", "volumeMounts": None}])
    result = patched(pod)
    assert result["spec"]["volumes"] == [MEMINFO, CPU]
    for container in result["spec"]["initContainers"] + result["spec"]["containers"]:
        assert container["volumeMounts"] == BOTH


def test_what_a_pod_has_is_kept_and_comes_first():
    data = own("data", emptyDir={})
    result = patched(a_pod({"name": "data", "mountPath": "/data"}, volumes=[data]))
    assert result["spec"]["volumes"] == [data, MEMINFO, CPU]
    assert result["spec"]["containers"][0]["volumeMounts"] == [{"name": "data", "mountPath": "/data"}, *BOTH]


def test_a_pod_that_was_patched_is_not_patched_again():
    result = patched(a_pod(initContainers=[{"name": "first"}]), ALL)
    assert not of_pod(result, ALL, opt_in=False).operations


PROFILE = {"type": "Localhost", "localhostProfile": "lxcfs-py/seccomp.json"}


@pytest.mark.parametrize("context", [None, {}, {"runAsUser": 5}])
def test_where_system_calls_are_answered_a_pod_without_a_profile_gets_one(context):
    pod = a_pod() if context is None else a_pod(securityContext=context)
    result = jsonpatch.apply_patch(pod, of_pod(pod, TWO, False, syscalls=True).operations)
    assert result["spec"]["securityContext"] == {**(context or {}), "seccompProfile": PROFILE}
    assert result["spec"]["volumes"] == [MEMINFO, CPU]
    assert "seccompProfile" not in json.dumps(patched(pod))


@pytest.mark.parametrize(
    ("pod", "container"),
    [
        ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, {}),
        ({"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}}, {}),
        ({}, {"privileged": True}),
        ({}, {"capabilities": {"add": ["SYS_ADMIN"]}}),
    ],
)
def test_a_pod_with_a_profile_of_its_own_or_with_more_rights_is_left_as_it_is(pod, container):
    pod = a_pod(**pod)
    pod["spec"]["containers"][0]["securityContext"] = container
    operations = of_pod(pod, TWO, False, syscalls=True).operations
    assert operations
    assert "localhostProfile" not in json.dumps(operations)


def test_a_container_that_came_after_the_patch_gets_the_mounts_of_the_volumes_that_are_there():
    pod = patched(a_pod())
    pod["spec"]["containers"].append({"name": "sidecar"})
    result = patched(pod)
    assert result["spec"]["volumes"] == [MEMINFO, CPU]
    assert result["spec"]["containers"][1]["volumeMounts"] == BOTH


@pytest.mark.parametrize("path", ["/proc/meminfo", "/proc/meminfo/", "//proc/./meminfo", "/proc", "/proc/"])
def test_nothing_is_mounted_where_a_container_mounts_something_itself(path):
    result = patched(a_pod({"name": "mine", "mountPath": path}, volumes=[own("mine", emptyDir={})]))
    assert [mount["mountPath"] for mount in result["spec"]["containers"][0]["volumeMounts"]] == [
        path,
        BOTH[1]["mountPath"],
    ]
    assert [volume["name"] for volume in result["spec"]["volumes"]] == ["mine", CPU["name"]]


def test_nothing_is_mounted_over_what_a_container_mounts_below():
    below = {"name": "mine", "mountPath": "/sys/devices/system/cpu/cpufreq"}
    result = patched(a_pod(below, volumes=[own("mine", emptyDir={})]))
    assert result["spec"]["containers"][0]["volumeMounts"] == [below, BOTH[0]]


def test_only_the_container_that_mounts_something_itself_is_left_alone():
    pod = a_pod({"name": "mine", "mountPath": "/proc/meminfo"}, volumes=[own("mine", emptyDir={})])
    pod["spec"]["containers"].append({"name": "other"})
    result = patched(pod)
    assert result["spec"]["containers"][1]["volumeMounts"] == BOTH


@pytest.mark.parametrize("path", ["/", "/proc/meminfo2", "/procedures", "/sys/devices/system/cpu2"])
def test_a_mount_elsewhere_changes_nothing(path):
    result = patched(a_pod({"name": "mine", "mountPath": path}))
    assert result["spec"]["containers"][0]["volumeMounts"][1:] == BOTH


def test_a_volume_of_the_same_file_is_used_whatever_its_name():
    mine = own("mem", hostPath={"path": "/var/lib/lxcfs/proc/meminfo"})
    result = patched(a_pod(volumes=[mine]))
    assert result["spec"]["volumes"] == [mine, CPU]
    assert result["spec"]["containers"][0]["volumeMounts"] == [mount("mem", "/proc/meminfo"), BOTH[1]]


def test_a_name_that_the_pod_uses_for_something_else_is_not_touched():
    mine = own("lxcfs-proc-meminfo", emptyDir={})
    result = patched(a_pod(volumes=[mine]))
    assert result["spec"]["volumes"] == [mine, CPU]
    assert result["spec"]["containers"][0]["volumeMounts"] == [BOTH[1]]


@pytest.mark.parametrize("place", ["labels", "annotations"])
@pytest.mark.parametrize(
    ("wish", "everybody", "who_asks"),
    [
        ("none", False, False),
        ("none, stat", False, False),
        ("all", True, True),
        ("stat, all", True, True),
        (None, True, False),
    ],
)
def test_a_pod_opts_in_and_out(place, wish, everybody, who_asks):
    pod = a_pod(metadata={place: {KEY: wish} if wish else None})
    assert bool(of_pod(pod, TWO, opt_in=False).operations) == everybody
    assert bool(of_pod(pod, TWO, opt_in=True).operations) == who_asks


def test_opting_out_is_stronger_than_opting_in():
    assert not of_pod(a_pod(metadata={"labels": {KEY: "all"}, "annotations": {KEY: "none"}}), TWO, True).operations


@pytest.mark.parametrize("place", ["labels", "annotations"])
@pytest.mark.parametrize("opt_in", [False, True])
def test_a_pod_that_names_files_gets_these(place, opt_in):
    result = patched(a_pod(metadata={place: {KEY: "meminfo"}}), opt_in=opt_in)
    assert result["spec"]["volumes"] == [MEMINFO]
    assert result["spec"]["containers"][0]["volumeMounts"] == BOTH[:1]
    several = a_pod(metadata={place: {KEY: " /proc/meminfo, sys/devices/system/cpu, pressure/cpu "}})
    assert patched(several, opt_in=opt_in)["spec"]["volumes"] == [MEMINFO, CPU]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("yes", "lxcfs.py/views names 'yes'; allowed: all, none, or files with commas between them"),
        (
            "pressure/cpu",
            "this pod sees the figures of its node, not its own (lxcfs-py): runtimes mount over none of the files that "
            "lxcfs.py/views names, or they are not enabled",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_answered_with_a_warning(wish, said):
    patch = of_pod(a_pod(metadata={"annotations": {KEY: wish}}), TWO, opt_in=False)
    assert not patch.operations
    assert patch.warnings == (said,)


def test_a_word_that_says_nothing_is_told_to_whoever_made_the_pod():
    annotations = {"lxcfs.py/cpu-mode": "all", "lxcfs.py/syscalls": "yes", "lxcfs.py/environment": ", A, B C, D E"}
    patch = of_pod(a_pod(metadata={"annotations": annotations}), TWO, opt_in=False)
    assert patch.operations
    assert patch.warnings == (
        "lxcfs.py/syscalls is 'yes', which says nothing; allowed: true, false",
        'lxcfs.py/cpu-mode is "all"; allowed: "quota", "cpuset", "requests"',
        "lxcfs.py/environment names 'B C'; allowed: names of variables with commas between them",
    )


WISHES = {
    **dict.fromkeys(("all", " all", "All", "true", "True", "all,", "all, ", "true,", ", all,true"), "everything"),
    **dict.fromkeys(("none ", "None", "none,", "none, all", "memfino", "", " , ", "yes", "all, memfino"), "nothing"),
    **dict.fromkeys(("meminfo", "meminfo,", " , meminfo", "MemInfo"), "/proc/meminfo"),
    "meminfo,/proc/stat": "/proc/meminfo /proc/stat",
}


def test_the_webhook_and_nri_understand_the_same_of_a_pod():
    enabled = tuple(volume.target[1:] for volume in ALL)
    for wish, means in WISHES.items():
        for default in ("all", "opt-in"):
            told = Pod("a", "shop", {}, {KEY: wish}, "")
            names, _ = Policy("/var/lib/lxcfs", enabled, default).names_for(told, CONTAINER)
            result = patched(a_pod(metadata={"annotations": {KEY: wish}}), ALL, opt_in=default == "opt-in")
            mounts = result["spec"]["containers"][0].get("volumeMounts", [])
            paths = [mount["mountPath"] for mount in mounts]
            assert paths == [f"/{name}" for name in names], wish
            assert (" ".join(paths) if len(paths) < len(ALL) else "everything") == means.replace("nothing", ""), wish


@pytest.mark.parametrize("name", ["LXCFS_PY_VIEWS", KEY])
@pytest.mark.parametrize("wish", ["none", " None,"])
def test_a_container_may_opt_out_by_its_environment(name, wish):
    opted_out = {"env": [{"name": name, "value": wish}]}
    others = [{"env": [{"name": name, "value": "all"}]}, {"env": [{"name": name, "valueFrom": {}}]}]
    containers = patched(a_pod(containers=[opted_out, *others]))["spec"]["containers"]
    assert ["volumeMounts" in container for container in containers] == [False, True, True]
    assert not of_pod(a_pod(containers=[opted_out]), TWO, opt_in=False).operations


@pytest.mark.parametrize("name", ["LXCFS_PY_VIEWS", KEY])
@pytest.mark.parametrize("kind", ["initContainers", "containers"])
def test_a_pod_with_a_container_that_opts_out_gets_no_profile(name, kind):
    opted_out = {"env": [{"name": name, "value": "none"}]}
    operations = of_pod(a_pod(**{kind: [opted_out, {}]}), TWO, False, syscalls=True).operations
    assert operations
    assert "localhostProfile" not in json.dumps(operations)
    assert not of_pod(a_pod(containers=[opted_out]), TWO, False, syscalls=True).operations


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (a_pod(runtimeClassName="kata-qemu"), "its runtime kata-qemu has another kernel"),
        (a_pod(runtimeClassName="gvisor"), "its runtime gvisor has another kernel"),
        (a_pod(hostUsers=False), "it has a user namespace, in which Kubernetes can mount no FUSE files"),
        (
            a_pod(metadata={"annotations": {"kubernetes.io/config.mirror": "0123"}}),
            "it is a static pod, which only its node can change",
        ),
    ],
)
def test_pods_that_could_not_start_with_the_files_do_not_get_them(pod, reason):
    patch = of_pod(pod, TWO, opt_in=False)
    assert (patch.operations, patch.reason) == ([], reason)


def on_nodes(*terms):
    """What a pod asks of its node's labels: one of these terms, each a list of expressions."""
    required = {"nodeSelectorTerms": [{"matchExpressions": list(term)} for term in terms]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}


def of_label(label, *values, operator="In"):
    return {"key": label, "operator": operator, "values": list(values)}


WINDOWS, ZONE = of_label("kubernetes.io/os", "windows"), of_label("topology.kubernetes.io/zone", "a")
HOST_PROCESS = {"securityContext": {"windowsOptions": {"hostProcess": True}}}


@pytest.mark.parametrize(
    ("spec", "is_left_out"),
    [
        ({"os": {"name": "windows"}}, True),
        ({"os": {"name": "linux"}, "nodeSelector": {"kubernetes.io/os": "linux"}}, False),
        ({"nodeSelector": {"kubernetes.io/os": "windows"}}, True),
        ({"nodeSelector": {"beta.kubernetes.io/os": "windows"}}, True),
        (HOST_PROCESS, True),
        ({"initContainers": [HOST_PROCESS]}, True),
        ({"containers": [{}, HOST_PROCESS]}, True),
        ({"securityContext": {"windowsOptions": None}, "affinity": None}, False),
        (on_nodes([WINDOWS]), True),
        (on_nodes([ZONE, WINDOWS], [of_label("beta.kubernetes.io/os", "windows")]), True),
        (on_nodes([WINDOWS], [ZONE]), False),
        (on_nodes([of_label("kubernetes.io/os", "windows", "linux")]), False),
        (on_nodes([of_label("kubernetes.io/os", "windows", operator="NotIn")]), False),
        (on_nodes(), False),
        ({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}, False),
    ],
)
def test_a_pod_for_windows_gets_nothing_whichever_way_it_says_so(spec, is_left_out):
    patch = of_pod(a_pod(**spec), TWO, opt_in=False)
    assert (patch.reason, bool(patch.operations)) == (("it is for Windows", False) if is_left_out else ("", True))


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        ({"containers": [{}] * 200}, True),
        ({"containers": [{}] * 101, "initContainers": [{}] * 100}, False),
        ({"volumes": [{}] * 1000}, True),
        ({"volumes": [{}] * 1001}, False),
        ({"containers": [{"volumeMounts": [{}] * 1000}] * 5}, True),
        ({"containers": [{"volumeMounts": [{}] * 1000}] * 5 + [{"volumeMounts": [{}]}]}, False),
    ],
)
def test_a_pod_so_large_that_its_patch_would_take_much_memory_or_time_is_left_as_it_is(spec, fits):
    patch = of_pod(a_pod(**spec), TWO, opt_in=False)
    assert bool(patch.operations) == fits
    assert patch.reason == ("" if fits else "it has more than 200 containers, 1000 volumes or 5000 mounts")


@pytest.mark.parametrize(
    "spec",
    [{"hostUsers": False}, {"containers": [{}] * 201}, {"runtimeClassName": "gvisor"}],
    ids=["user namespace", "large", "another kernel"],
)
def test_who_asks_for_nothing_unusual_and_gets_no_files_is_told(spec):
    patch = of_pod(a_pod(**spec), TWO, opt_in=False)
    assert patch.warnings == (f"this pod sees the figures of its node, not its own (lxcfs-py): {patch.reason}",)


@pytest.mark.parametrize("pod", [{"metadata": {"labels": {KEY: "none"}}}, {"os": {"name": "windows"}}])
def test_who_opted_out_or_has_no_such_files_is_told_nothing(pod):
    assert of_pod(a_pod(**pod), TWO, opt_in=False).warnings == ()


@pytest.mark.parametrize(
    ("annotations", "before"),
    [(None, []), ({"x": "y"}, []), ({EVICTABLE: "cache,tmp"}, ["cache", "tmp"])],
    ids=["none", "others", "its own"],
)
def test_a_pod_with_the_files_does_not_keep_its_node_from_being_scaled_down(annotations, before):
    pod = patched(a_pod(metadata={"annotations": annotations} if annotations else {}))
    added = [volume["name"] for volume in pod["spec"]["volumes"] if "hostPath" in volume]
    assert pod["metadata"]["annotations"] == {**(annotations or {}), EVICTABLE: ",".join([*before, *added])}


def test_where_hostpath_is_forbidden_a_pod_is_let_in_as_it_is_and_its_user_is_told():
    def response(pod, opt_in=False):
        body = json.dumps(a_review(pod)).encode()
        return review.answer(body, TWO, opt_in, is_forbidden=True, dry_run=False).review["response"]

    answer = response(a_pod())
    assert answer["allowed"] is True
    assert "patch" not in answer
    assert answer["warnings"] == [
        "this pod sees the figures of its node, not its own (lxcfs-py): "
        "its namespace enforces a Pod Security Standard, which forbids hostPath"
    ]
    assert "warnings" not in response(a_pod(metadata={"labels": {KEY: "none"}}))
    assert "warnings" not in response(a_pod(), opt_in=True)
    assert "warnings" in response(a_pod(metadata={"annotations": {KEY: "all"}}), opt_in=True)


def test_a_new_ephemeral_container_gets_the_mounts_and_an_older_one_is_not_changed():
    before = patched(a_pod())
    before["spec"]["ephemeralContainers"] = [{"name": "older"}]
    pod = copy.deepcopy(before)
    pod["spec"]["ephemeralContainers"].append({"name": "new"})
    result = jsonpatch.apply_patch(pod, of_ephemeral_containers(pod, before, TWO).operations)
    pod["spec"]["ephemeralContainers"][1]["volumeMounts"] = BOTH
    assert result == pod


def test_an_ephemeral_container_gets_only_files_that_the_pod_has_volumes_of():
    before = patched(a_pod())
    del before["spec"]["volumes"][1]
    pod = copy.deepcopy(before)
    pod["spec"]["ephemeralContainers"] = [{"name": "new"}]
    result = jsonpatch.apply_patch(pod, of_ephemeral_containers(pod, before, TWO).operations)
    assert result["spec"]["ephemeralContainers"] == [{"name": "new", "volumeMounts": BOTH[:1]}]
    assert result["spec"]["volumes"] == before["spec"]["volumes"]


def test_an_ephemeral_container_of_a_pod_that_opted_out_gets_nothing():
    before = patched(a_pod())
    before["metadata"]["annotations"] = {KEY: "none"}
    pod = copy.deepcopy(before)
    pod["spec"]["ephemeralContainers"] = [{"name": "new"}]
    assert not of_ephemeral_containers(pod, before, TWO).operations


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"metadata": [], "spec": {}},
        {"metadata": {}, "spec": None},
        {"metadata": {"labels": 3}, "spec": {}},
        {"metadata": {}, "spec": {"containers": {}}},
        {"metadata": {}, "spec": {"containers": [None]}},
        {"metadata": {}, "spec": {"containers": [{"volumeMounts": "x"}]}},
        {"metadata": {}, "spec": {"volumes": [[]]}},
        {"metadata": {}, "spec": {"volumes": [{"hostPath": 7}]}},
    ],
)
def test_what_is_not_shaped_like_a_pod_is_named(pod):
    with pytest.raises(ShapeError, match="is not a"):
        of_pod(pod, TWO, opt_in=False)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["/proc", "/proc/meminfo", KEY, "all"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def sometimes(**fields):
    """An object that has some of these fields, mostly of the right kind."""
    return st.fixed_dictionaries({}, optional={name: value | anything for name, value in fields.items()})


volume_mounts = st.lists(sometimes(name=st.text(max_size=3), mountPath=st.sampled_from(["/proc", "/x"])), max_size=3)
containers = st.lists(sometimes(name=st.just("c"), volumeMounts=volume_mounts), max_size=3)
volumes = st.lists(
    sometimes(name=st.just("v"), hostPath=sometimes(path=st.just("/var/lib/lxcfs/proc/meminfo"))), max_size=3
)
pods = sometimes(
    metadata=sometimes(name=st.just("p"), labels=sometimes(**{KEY: st.just("all")}), annotations=sometimes()),
    spec=sometimes(containers=containers, initContainers=containers, ephemeralContainers=containers, volumes=volumes),
)
requests = sometimes(
    resource=st.just({"group": "", "version": "v1", "resource": "pods"}),
    operation=st.sampled_from(["CREATE", "UPDATE"]),
    subResource=st.sampled_from(["", "ephemeralcontainers"]),
    object=pods,
    oldObject=pods,
)


@given(requests, st.booleans())
def test_whatever_is_asked_the_pod_is_let_in_and_a_patch_applies(request, opt_in):
    request["uid"] = "0"
    body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()
    answer = review.answer(body, ALL, opt_in, is_forbidden=False, dry_run=False)
    response = answer.review["response"]
    assert response["allowed"] is True
    assert answer.outcome != "failed"
    if "patch" in response:
        patch = jsonpatch.JsonPatch.from_string(base64.b64decode(response["patch"]).decode())
        assert jsonpatch.apply_patch(request["object"], patch) != request["object"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b"1" * 10_000,
        b"null",
        b"[]",
        b'{"kind": "Pod"}',
        b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "1"}}',
        b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}',
        b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": 1}}',
    ],
)
def test_what_is_no_admission_review_is_refused(body):
    with pytest.raises(review.ReviewError):
        review.answer(body, TWO, opt_in=False, is_forbidden=False, dry_run=False)


def test_a_body_of_so_many_values_that_they_would_take_much_memory_is_refused():
    body = json.dumps(a_review(a_pod(), padding=[0] * 250_000)).encode()
    with pytest.raises(review.ReviewError, match="too many values; allowed: 250000"):
        review.answer(body, TWO, opt_in=False, is_forbidden=False, dry_run=False)


def test_a_fault_in_the_program_lets_the_pod_in(monkeypatch):
    monkeypatch.setattr(review, "of_pod", lambda *_: 1 / 0)
    answer = review.answer(json.dumps(a_review(a_pod())).encode(), TWO, opt_in=False, is_forbidden=False, dry_run=False)
    assert answer.review["response"] == {"uid": "4711", "allowed": True}
    assert answer.outcome == "failed"
