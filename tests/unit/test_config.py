import os
import re
import time
import tracemalloc
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py import config
from lxcfs_py.config import Attach, Config, ConfigError, Cpu, Files, Fuse, Loadavg, Log, Memory, Metrics
from lxcfs_py.daemon import last_config
from lxcfs_py.files import NAMES
from lxcfs_py.linux import runtime_directory

MOUNTPOINT = (
    "an absolute path other than / that is not in /proc, /sys, /dev, /run/lxcfs-py, "
    "of up to 4095 bytes, 255 for each name"
)
PATTERNS = 'allowed: a list of up to 64 patterns of cgroup paths such as "/docker/*"'
PATTERN = (
    "allowed: a cgroup's path, up to 16 names with a / before each, where * stands for any part of a name, "
    "? for a character, [0-9a-f] for one of these"
)

SHIPPED = Path(__file__).parents[2] / "etc" / "lxcfs.toml"


def errors(text: "str | bytes") -> "list[str]":
    with pytest.raises(ConfigError) as caught:
        config.parse(text.encode() if isinstance(text, str) else text, "lxcfs.toml")
    return caught.value.errors


def test_an_empty_file_is_the_defaults():
    assert config.parse(b"", "lxcfs.toml") == Config()


def test_the_shipped_file_is_the_defaults():
    assert config.load(SHIPPED) == Config()


def test_the_shipped_file_names_every_key_and_says_what_each_does():
    table, named, before = "", [], ""
    for line in SHIPPED.read_text().splitlines():
        if re.fullmatch(r"\[\w+\]", line):
            table = line[1:-1] + "."
        elif key := re.match(r"(\w+) = ", line):
            assert before.startswith("# "), f"{line} has no comment"
            named.append(table + key[1])
        before = line
    assert (*named, "policy") == config.KEYS, "of policies, it has an example in a comment"
    (example,) = re.findall(r"^# \[\[policy\]\]\n(?:# .*\n)+", SHIPPED.read_text(), re.MULTILINE)
    (policy,) = config.parse(example.replace("# ", "").encode(), "example").policy
    assert len(policy.conditions()) == 3


def test_every_key_is_an_attribute_of_the_same_name():
    named = []
    for field in fields(Config):
        value = getattr(Config(), field.name)
        named += [f"{field.name}.{inner.name}" for inner in fields(value)] if is_dataclass(value) else [field.name]
    assert tuple(named) == config.KEYS


def test_every_key_is_read():
    source = b"""
        mountpoint = "/run/views"
        files.enabled = ["proc/stat", "proc/meminfo"]
        cpu = { mode = "cpuset" }
        [memory]
        swap = false
        [loadavg]
        enabled = false
        interval = 1.5
        [attach]
        auto = true
        cgroups = ["/a/*", "/b[0-9]?.slice"]
        [fuse]
        engine = "fusepy"
        threads = 32
        options = 'context="a:b:c:s0:c1,c2"'
        [log]
        level = "error"
        [metrics]
        listen = "[::1]:9756"
    """
    assert config.parse(source, "lxcfs.toml") == Config(
        mountpoint="/run/views",
        files=Files(enabled=("proc/stat", "proc/meminfo")),
        cpu=Cpu(mode="cpuset"),
        memory=Memory(swap=False),
        loadavg=Loadavg(enabled=False, interval=1.5),
        attach=Attach(auto=True, cgroups=("/a/*", "/b[0-9]?.slice")),
        fuse=Fuse(engine="fusepy", threads=32, options='context="a:b:c:s0:c1,c2"'),
        log=Log(level="error"),
        metrics=Metrics(listen="[::1]:9756"),
    )


def test_a_link_to_the_root_directory_is_no_mountpoint(tmp_path):
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(ConfigError, match=f"allowed: {MOUNTPOINT}"):
        config.parse(f'mountpoint = "{tmp_path}/link"'.encode(), "lxcfs.toml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('mountpoint = "var/lib"', f'lxcfs.toml:1: mountpoint is "var/lib"; allowed: {MOUNTPOINT}'),
        ('mountpoint = "//"', f'lxcfs.toml:1: mountpoint is "//"; allowed: {MOUNTPOINT}'),
        ('mountpoint = "/tmp/.."', f'lxcfs.toml:1: mountpoint is "/tmp/.."; allowed: {MOUNTPOINT}'),
        (
            'mountpoint = "/a\\u0000b"',
            f'lxcfs.toml:1: mountpoint is "/a\\U00000000b"; allowed: {MOUNTPOINT}',
        ),
        ('mountpoint = "/proc"', f'lxcfs.toml:1: mountpoint is "/proc"; allowed: {MOUNTPOINT}'),
        ('mountpoint = "/dev/null/x"', f'lxcfs.toml:1: mountpoint is "/dev/null/x"; allowed: {MOUNTPOINT}'),
        ("mountpoint = 1", f"lxcfs.toml:1: mountpoint is 1; allowed: {MOUNTPOINT}"),
        ("[mountpoint]", f"lxcfs.toml:1: mountpoint is a table; allowed: {MOUNTPOINT}"),
        ('[cpu]\nmode = "quotas"', 'lxcfs.toml:2: cpu.mode is "quotas"; allowed: "quota", "cpuset", "requests"'),
        ("[cpu]\nmode = ['quota']", 'lxcfs.toml:2: cpu.mode is a list; allowed: "quota", "cpuset", "requests"'),
        ("[cpu.mode]", 'lxcfs.toml:1: cpu.mode is a table; allowed: "quota", "cpuset", "requests"'),
        ("cpu = 2", "lxcfs.toml:1: cpu is 2; allowed: a table, [cpu]"),
        ("[[cpu]]\nmode = 'quota'", "lxcfs.toml:1: cpu is a list; allowed: a table, [cpu]"),
        ("[attach]\nauto = 1", "lxcfs.toml:2: attach.auto is 1; allowed: true, false"),
        ('[attach]\ncgroups = "/docker/*"', f'lxcfs.toml:2: attach.cgroups is "/docker/*"; {PATTERNS}'),
        (f"[attach]\ncgroups = {['/a'] * 65}", f"lxcfs.toml:2: attach.cgroups has 65 patterns; {PATTERNS}"),
        ("[attach]\ncgroups = [1]", f"lxcfs.toml:2: attach.cgroups has 1; {PATTERN}"),
        *(
            (f"[attach]\ncgroups = ['{pattern}']", f'lxcfs.toml:2: attach.cgroups has "{pattern}"; {PATTERN}')
            for pattern in ("", "/", "docker/*", "/docker/", "/a//b", "/a" * 17)
        ),
        ("[memory]\nswap = 1", "lxcfs.toml:2: memory.swap is 1; allowed: true, false"),
        ("[memory]\nswap = 'true'", 'lxcfs.toml:2: memory.swap is "true"; allowed: true, false'),
        ("[loadavg]\nenabled = 1.0", "lxcfs.toml:2: loadavg.enabled is 1.0; allowed: true, false"),
        ("[loadavg]\ninterval = nan", "lxcfs.toml:2: loadavg.interval is nan; allowed: seconds from 1 to 60"),
        ("[loadavg]\ninterval = inf", "lxcfs.toml:2: loadavg.interval is inf; allowed: seconds from 1 to 60"),
        ("[loadavg]\ninterval = 0.99", "lxcfs.toml:2: loadavg.interval is 0.99; allowed: seconds from 1 to 60"),
        ("[loadavg]\ninterval = 61", "lxcfs.toml:2: loadavg.interval is 61; allowed: seconds from 1 to 60"),
        ("[loadavg]\ninterval = true", "lxcfs.toml:2: loadavg.interval is true; allowed: seconds from 1 to 60"),
        ("fuse.engine = 'libfuse'", 'lxcfs.toml:1: fuse.engine is "libfuse"; allowed: "auto", "kernel", "fusepy"'),
        ("fuse.threads = 0", "lxcfs.toml:1: fuse.threads is 0; allowed: a whole number from 1 to 32"),
        ("fuse.threads = 33", "lxcfs.toml:1: fuse.threads is 33; allowed: a whole number from 1 to 32"),
        ("fuse.threads = 2.0", "lxcfs.toml:1: fuse.threads is 2.0; allowed: a whole number from 1 to 32"),
        ("fuse.threads = true", "lxcfs.toml:1: fuse.threads is true; allowed: a whole number from 1 to 32"),
        (
            "fuse.threads = 2020-01-01",
            "lxcfs.toml:1: fuse.threads is a date or time, 2020-01-01; allowed: a whole number from 1 to 32",
        ),
        (
            "fuse.threads = 0x" + 5000 * "f",
            "lxcfs.toml:1: fuse.threads is a number of more than 64 bits; allowed: a whole number from 1 to 32",
        ),
        ("log.level = 'warn'", 'lxcfs.toml:1: log.level is "warn"; allowed: "debug", "info", "warning", "error"'),
        (
            "files.enabled = ['proc/stat', 'proc/stat']",
            'lxcfs.toml:1: files.enabled has "proc/stat" twice; allowed: each file once',
        ),
        (
            "files.enabled = ['proc/cpuinf']",
            'lxcfs.toml:1: files.enabled has "proc/cpuinf"; did you mean "proc/cpuinfo"?',
        ),
        ('log.Level = "info"', 'lxcfs.toml:1: unknown key "log.Level"; did you mean "log.level"?'),
        ("[memroy]\nswap = true", 'lxcfs.toml:2: unknown key "memroy.swap"; did you mean "memory.swap"?'),
        ("swap = true", 'lxcfs.toml:1: unknown key "swap"; did you mean "memory.swap"?'),
        (
            '[metrics]\nmountpoint = "/x"',
            'lxcfs.toml:2: unknown key "metrics.mountpoint"; did you mean "mountpoint", above the first table?',
        ),
        (
            "[metrics]\ncpu.mode = 'quota'",
            'lxcfs.toml:2: unknown key "metrics.cpu.mode"; did you mean "cpu.mode", above the first table?',
        ),
    ],
)
def test_an_error_names_file_line_key_what_was_found_and_what_is_allowed(text, error):
    assert errors(text) == [error]


@pytest.mark.parametrize("listen", ["", "127.0.0.1:9756", "[::1]:9756", "metrics.example.org:1", "0.0.0.0:65535"])
def test_metrics_listen_takes_host_and_port(listen):
    assert config.parse(f'metrics.listen = "{listen}"'.encode(), "lxcfs.toml").metrics.listen == listen


@pytest.mark.parametrize(
    "listen",
    ["9756", ":9756", "localhost", "localhost:", "localhost:0", "::1:80", "[::g]:80", "[::1]", "a:65536", "a:\u0661"],
)
def test_metrics_listen_refuses_what_is_no_host_and_port(listen):
    allowed = '"" (off), HOST:PORT, [IPV6]:PORT, with a port from 1 to 65535'
    assert errors(f'metrics.listen = "{listen}"') == [f'lxcfs.toml:1: metrics.listen is "{listen}"; allowed: {allowed}']


@pytest.mark.parametrize("options", ["allow_other", "context=", "context=a,b", "context=a,user_id=7", 'context="a"b'])
def test_fuse_options_refuses_what_is_not_selinuxs(options):
    (error,) = errors(f"fuse.options = '{options}'")
    assert "fuse.options is" in error
    assert 'allowed: "" or SELinux\'s context=' in error


def test_a_name_that_is_like_no_file_is_answered_with_all_of_them():
    (error,) = errors("files.enabled = [7]")
    assert error == "lxcfs.toml:1: files.enabled has 7; allowed: " + ", ".join(f'"{name}"' for name in NAMES)


def test_a_key_that_is_like_no_known_one_is_answered_with_all_of_them():
    (error,) = errors("zzz = 1")
    assert error == 'lxcfs.toml:1: unknown key "zzz"; known: ' + ", ".join(f'"{key}"' for key in config.KEYS)


def test_all_errors_of_a_file_are_reported_at_once_in_its_order():
    found = errors(
        'mountpoint = "here"\n[fuse]\nthreads = 0\nengine = "c"\n\n[cpu]\nmode = "all"\nmode2 = ""\n'
        '[memory]\nswap = "no"\n'
    )
    assert [error.split(" ")[0] for error in found] == [f"lxcfs.toml:{line}:" for line in (1, 3, 4, 7, 8, 10)]


def test_every_wrong_name_in_a_list_is_reported():
    found = errors("[files]\nenabled = [\n  'proc/stat',\n  'proc/stats',\n  5,\n  'proc/stat',\n]")
    assert [error.split(";")[0] for error in found] == [
        'lxcfs.toml:2: files.enabled has "proc/stats"',
        "lxcfs.toml:2: files.enabled has 5",
        'lxcfs.toml:2: files.enabled has "proc/stat" twice',
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n\n  cpu . mode = 'x'", 3),
        ("\r\n[ cpu ] # [log]\r\nmode='x'\r\n", 3),
        ('# """\n[cpu]\nmode = "x"', 3),
        ('[log]\nlevel = """info\\\n   """\n[cpu]\n"mode" = "x"', 5),
        ("files.enabled = [\n 'proc/stat', # mode = 1\n]\n[cpu]\nmode = 'x'", 5),
        ("\n[\"cpu\"]\n'mode' = 'x'", 3),
        ("\ncpu = { mode = 'x' }", 2),
        ("[log]\n[cpu]\n\"mo\\u0064e\" = 'x'", 2),  # the scan reads no escapes: the table's line
    ],
)
def test_the_line_of_a_key_is_found_however_it_is_written(text, line):
    assert errors(text) == [f'lxcfs.toml:{line}: cpu.mode is "x"; allowed: "quota", "cpuset", "requests"']


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_a_key_within_a_text_of_several_lines_is_not_taken_for_the_key(quotes):
    found = errors(f"note = {quotes}\n[cpu]\nmode = 'x'\n# {quotes}\n[cpu]\nmode = 'y'\n")
    assert found[-1] == 'lxcfs.toml:6: cpu.mode is "y"; allowed: "quota", "cpuset", "requests"'


def test_a_syntax_error_has_the_line():
    (error,) = errors("[cpu]\nmode = quota\n")
    assert error.startswith("lxcfs.toml:2: cannot be read as TOML: Invalid value (at line 2, column 8)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cpu]\nmode = 'quota'\nmode = 'quota'\n", '3: "cpu.mode" is there twice, in line 2'),
        ("[cpu]\nmode = 'quota'\nmode = 'quota'", '3: "cpu.mode" is there twice, in line 2'),
        ("cpu.mode = 'quota'\n[cpu]\nmode = 'quota'", '3: "cpu.mode" is there twice, in line 1'),
        ("cpu.mode = 'quota'\n[cpu]", '2: "cpu" is there twice, in line 1'),
        ("cpu = {}\ncpu.mode = 'quota'", '2: "cpu" is there twice, in line 1'),
        ("[[policy]]\nlabel = 'a'\ncpu.mode = 'quota'\n[policy.cpu]", '4: "policy.cpu" is there twice, in line 3'),
        ("[cpu]\nmode = 'quota'\n[log]\n[cpu]\nweights = 'linear'", '4: "cpu" is there twice, in line 1'),
        (
            "[[policy]]\nimage = 'a'\n[[policy]]\nimage = 'b'\nimage = 'c'",
            '5: "policy.image" is there twice, in line 4',
        ),
    ],
)
def test_what_is_there_twice_is_named_with_both_lines(text, said):
    assert errors(text) == [f"lxcfs.toml:{said} before; allowed: once"]


def test_bytes_that_are_no_utf8_have_the_line():
    assert errors(b"[cpu]\nmode = '\xe9'\n") == ["lxcfs.toml:2: byte 0xe9 is not UTF-8; allowed: UTF-8"]


@pytest.mark.parametrize("value", [100_000 * "[", 100_000 * "{a=", "9" * 5000])
def test_a_value_beyond_what_python_reads_is_an_error_like_any_other(value):
    (error,) = errors(f"cpu.mode = {value}")
    # The number is read by a Python from before int() had a limit, and is then too long for cpu.mode.
    assert re.match(r"lxcfs.toml: cannot be read as TOML: |lxcfs.toml:1: cpu.mode is a number of more than", error)


def test_a_control_character_reaches_no_terminal():
    (error,) = errors('cpu.mode = "\\u001b[2J\\n\\"\\\\"')
    assert (
        error == 'lxcfs.toml:1: cpu.mode is "\\U0000001b[2J\\U0000000a\\"\\\\"; allowed: "quota", "cpuset", "requests"'
    )


def test_a_missing_file_is_an_error_with_the_kernels_words(tmp_path):
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none: cannot be read: No such file or directory$"):
        config.load(tmp_path / "none")


def test_a_directory_is_an_error_with_the_kernels_words(tmp_path):
    with pytest.raises(ConfigError, match=f"^{tmp_path}: cannot be read: Is a directory$"):
        config.load(tmp_path)


def test_a_fifo_is_an_error_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "lxcfs.toml")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/lxcfs.toml: cannot be read: it is no regular file$"):
        config.load(tmp_path / "lxcfs.toml")


def test_a_device_without_an_end_is_an_error_and_the_null_device_an_empty_file(tmp_path):
    path = tmp_path / "lxcfs.toml"
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=f"^{path}: cannot be read: it is no regular file$"):
        config.load(path)
    assert config.load("/dev/null") == Config()


def test_a_file_of_more_than_128_kibibytes_is_an_error(tmp_path):
    path = tmp_path / "lxcfs.toml"
    path.write_text("#" * (1 << 17))
    assert config.load(path) == Config()
    path.write_text("#" * ((1 << 17) + 1))
    with pytest.raises(ConfigError, match=f"^{path}: has more than 128 KiB; allowed: up to that$"):
        config.load(path)


def test_errors_of_a_loaded_file_carry_its_path(tmp_path):
    path = tmp_path / "lxcfs.toml"
    path.write_text("[cpu]\nmode = 5\n")
    with pytest.raises(ConfigError, match=f"^{path}:2: cpu.mode is 5; "):
        config.load(path)


CONFIGS = st.builds(
    Config,
    mountpoint=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=60).map("/x{}".format),
    files=st.builds(Files, enabled=st.lists(st.sampled_from(NAMES), unique=True).map(tuple)),
    cpu=st.builds(Cpu, mode=st.sampled_from(["quota", "cpuset"])),
    memory=st.builds(Memory, swap=st.booleans()),
    loadavg=st.builds(Loadavg, enabled=st.booleans(), interval=st.integers(1, 60) | st.floats(1, 60)),
    fuse=st.builds(
        Fuse,
        engine=st.sampled_from(["auto", "kernel", "fusepy"]),
        threads=st.integers(1, 32),
        options=st.sampled_from(["", 'context="a:b,c"']),
    ),
    log=st.builds(Log, level=st.sampled_from(["debug", "info", "warning", "error"])),
    metrics=st.builds(Metrics, listen=st.sampled_from(["", "127.0.0.1:9756", "[::1]:9756"])),
)


@given(CONFIGS)
def test_a_dumped_configuration_reads_back_to_the_same(configuration):
    assert config.parse(config.dump(configuration).encode(), "dump") == configuration


KEY = st.sampled_from([*config.KEYS, "cpu", "log.levle", "[cpu]", "[[fuse]]"]) | st.text("ab.[]\"'=", min_size=1)
VALUE = st.sampled_from(
    ["1", "true", '"x"', "[1, 'x']", "{a = 1}", "nan", "1979-05-27", '"""\n[cpu]"""', "0xfffffffff"]
)
NEARLY_TOML = st.lists(st.tuples(KEY, VALUE).map(" = ".join) | KEY | VALUE).map("\n".join)


@given(st.binary() | st.text().map(str.encode) | NEARLY_TOML.map(str.encode))
def test_any_bytes_give_a_configuration_or_a_config_error_of_whole_lines(source):
    try:
        configuration = config.parse(source, "lxcfs.toml")
    except ConfigError as error:
        sentences = error.errors
    else:
        sentences = ["lxcfs.toml: none"]
        assert config.parse(config.dump(configuration).encode(), "dump") == configuration
    assert sentences
    assert all(re.fullmatch(r"lxcfs\.toml(:\d+)?: [^\n]+", sentence) for sentence in sentences)


@pytest.mark.parametrize(
    ("table", "line", "meant"),
    [
        ("[cpu]", "mode = quota", 'mode = "quota"'),
        ("[cpu]", "mode = quota;", 'mode = "quota"'),
        ("[cpu]", 'mode = "quota";', 'mode = "quota"'),
        ("[cpu]", "mode = \u201cquota\u201d", 'mode = "quota"'),
        ("[cpu]", "mode = \u201equota\u201c", 'mode = "quota"'),
        ("[cpu]", "mode: quota", 'mode = "quota"'),
        ("[memory]", "swap = yes", "swap = true"),
        ("[memory]", "swap = Off # none", "swap = false"),
        ("[loadavg]", "enabled = True", "enabled = true"),
        ("[loadavg]", "interval = 5s", "interval = 5"),
        ("[loadavg]", "interval = 02.5", "interval = 2.5"),
        ("[fuse]", "threads = 08", "threads = 8"),
        ("[loadavg]", "interval = 5 seconds ; # often", "interval = 5"),
        ("", "mountpoint = /srv/views", 'mountpoint = "/srv/views"'),
        ("", "memory.swap: true", "memory.swap = true"),
        ("[metrics]", "listen = 127.0.0.1:9756", 'listen = "127.0.0.1:9756"'),
        ("[[policy]]", "cgroup = /docker/*", 'cgroup = "/docker/*"'),
        ("[[policy]]", "cpu.mode = cpuset", 'cpu.mode = "cpuset"'),
    ],
)
def test_a_line_that_is_no_toml_is_answered_with_what_was_meant(table, line, meant):
    (error,) = errors(f"{table}\n{line}\n")
    assert error.startswith("lxcfs.toml:2: cannot be read as TOML: ")
    assert error.endswith(f"; did you mean {meant}?")
    assert errors_or_none(f"{table}\n{meant}\n") == []


def errors_or_none(text):
    try:
        config.parse(text.encode(), "lxcfs.toml")
    except ConfigError as error:
        return [said for said in error.errors if "policy 1 has no" not in said]
    return []


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("[cpu]", "mode = quotas"),
        ("[loadavg]", "interval = .5"),
        ("[loadavg]", "interval = 5ms"),
        ("[fuse]", "threads = 099"),
        ("[files]", "enabled = proc/stat"),
        ("[[policy]]", "fuse.threads = 08"),
        ("", "mode = quota"),
        ("", "cpu = x"),
        ("", "cpu.mode.x = y"),
        ("", "cgroup = /a"),
        ("[cpu]", "\u00e4 = quota"),
        ("", 'mountpoint = "/x" // comment'),
        ("", 'mountpoint = "/a", "/b"'),
        ("", "mountpoint = '/a', '/b'"),
    ],
)
def test_nothing_is_meant_that_would_be_refused_in_its_turn(table, line):
    (error,) = errors(f"{table}\n{line}\n")
    assert error.startswith("lxcfs.toml:2: cannot be read as TOML: ")
    assert "did you mean" not in error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('"cpu.mode" = "quota"', '1: unknown key "cpu.mode"; did you mean cpu.mode without quotes?'),
        (
            '[[policy]]\nlabel = "a"\nmemory.swap = false\n"memory.swap" = true',
            '3: unknown key "policy.memory.swap"; did you mean memory.swap without quotes?',
        ),
    ],
)
def test_a_dotted_key_in_quotes_is_meant_without_them(text, error):
    assert errors(text) == [f"lxcfs.toml:{error}"]


BYTES = 1 << 17
NAMED = "a" * (BYTES // 2)
WITH_DOTS = ".".join("a" * (BYTES // 4))

ABSURD = {
    "blanks behind a value": "cpu.mode = quota" + " " * 120_000 + "y",
    "blanks before a value": "cpu.mode " + " " * 120_000 + "y",
    "zeros": "fuse.threads = " + "0" * 120_000 + "x",
    "zeros with a dot": "fuse.threads = " + "0" * 60_000 + "." + "0" * 60_000 + "x",
    "tabs in a header": "[cpu" + "\t" * 120_000 + "y",
    "a long key": f"{WITH_DOTS} = 1",
    "a long key with blanks": " . ".join("a" * 30_000) + " = 1",
    "a long key in quotes": ".".join(['"."'] * 30_000) + " = 1",
    "a long key in an inline table": f"x = {{{WITH_DOTS} = 1}}",
    "a long key in a policy": f"[[policy]]\n{'a.' * 2000}a = 1",
    "a long header": f"[{WITH_DOTS}]\n" + "".join(f"a{number} = 1\n" for number in range(5000)),
    "dots in quotes": f'"{"." * 120_000}" = 1',
    "a long name": f"[{NAMED}]\n" + "".join(f"a{number} = 1\n" for number in range(5000)),
    "a long name in a policy": f"[[policy]]\n[policy.{NAMED}]\n" + "".join(f"a{each} = 1\n" for each in range(5000)),
    "a long name twice": f"{NAMED[:60_000]} = 1\n{NAMED[:60_000]} = 2",
    "tables in tables": "x = " + "{a.a.a.a.a.a.a = " * 200 + "1" + "}" * 200,
    "tables in tables of a policy": "[[policy]]\nx = " + "{a.a.a.a.a.a.a = " * 200 + "1" + "}" * 200,
    "unknown keys": "".join(f"k{number} = 1\n" for number in range(10_000)),
    "unknown keys in policies": "".join(f"[[policy]]\nk{number} = 1\n" for number in range(64)),
    "unknown files": f"files.enabled = [{', '.join(map(repr, map(str, range(10_000))))}]",
    "one file again and again": f"files.enabled = [{', '.join([repr(NAMES[0])] * 8_000)}]",
    "quotes that end nowhere": "a = 1\na = 2\n" + '"""\n\\' * 20_000,
    "escaped quotes": "a = 1\na = 2\n" + '\\"' * 60_000,
    "a long mountpoint": f'mountpoint = "{"/a" * 60_000}"',
    "apostrophes": "a = 1\na = 2\n" + "'" * 120_001,
}


@pytest.mark.parametrize("text", ABSURD.values(), ids=ABSURD)
def test_no_text_takes_long_or_much_memory_or_says_much(text):
    assert len(text) < BYTES
    tracemalloc.start()
    before = time.process_time()
    try:
        told = errors(text)
        took, (_, memory) = time.process_time() - before, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(told) <= 21
    assert max(map(len, told)) < 1500
    assert took < 5  # where tracing makes it some times slower
    assert memory < 64 << 20


def test_of_many_errors_the_first_are_told_and_that_there_are_more():
    told = errors("".join(f"k{number} = 1\n" for number in range(1000)))
    assert told[19].startswith('lxcfs.toml:20: unknown key "k19"; known: ')
    assert told[20:] == ["lxcfs.toml: has more errors than these 20"]
    assert len(errors("".join(f"k{number} = 1\n" for number in range(20)))) == 20


@pytest.mark.parametrize("value", ["/" + "a" * 256, "/a" * 2048, "/" + "\u00e4" * 128])
def test_a_mountpoint_is_no_longer_than_the_kernel_takes_a_path(value):
    (error,) = errors(f'mountpoint = "{value}"')
    assert error.endswith(f"; allowed: {MOUNTPOINT}")
    for longest in ("/a" * 2047, "/" + "a" * 255):
        assert config.parse(f'mountpoint = "{longest}"'.encode(), "lxcfs.toml").mountpoint == longest


@pytest.mark.parametrize("condition", ["label = '=x'", "label = ' =x'", "label = ' '", "image = ' '"])
def test_a_condition_that_no_container_can_meet_is_refused(condition):
    (error,) = errors(f"[[policy]]\n{condition}\nmemory.swap = false")
    assert error.startswith(f"lxcfs.toml:2: policy.{condition.split()[0]} is ")


def test_a_byte_order_mark_is_named():
    with pytest.raises(ConfigError) as found:
        config.parse(b"\xef\xbb\xbf[cpu]\n", "lxcfs.toml")
    assert found.value.errors == ["lxcfs.toml:1: begins with a byte order mark; allowed: UTF-8 without one"]


def test_what_served_last_is_known_again_however_much_longer_it_is_than_the_file_that_said_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path / "run"))
    pattern = ("/" + '"' * 250) * 5
    text = "attach.cgroups = [" + f"'{pattern}'," * 64 + "]"
    served = config.parse(text.encode(), "lxcfs.toml")
    assert len(text) < 1 << 17 < len(config.dump(served))
    last_config.remember(served, "/etc/lxcfs.toml")
    assert last_config.recall(served.mountpoint) == served
    assert last_config.recall("/none") is None
