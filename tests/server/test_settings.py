"""Settings of ``zcserver serve``: which source wins, how each value is written, and what errors say."""

import pytest

from zcserver.cli.exits import CommandError, ExitCode
from zcserver.cli.pieces import LINES
from zcserver.cli.settings import SETTINGS, serve_settings

MIB = 1 << 20


def settings(given=None, config=None, environment=None):
    return serve_settings({"roots": ["/data"]} | (given or {}), config, environment or {})


def wrong(given=None, config=None, environment=None):
    """The one line of a setting that is refused."""
    with pytest.raises(CommandError) as caught:
        settings(given, config, environment)
    assert caught.value.code == ExitCode.USAGE
    assert "\n" not in caught.value.line
    return caught.value.line


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "zcserver.toml"

    def write(text):
        path.write_text(text)
        return str(path)

    return write


def test_by_default_one_directory_is_read_from_this_machine():
    found = settings()
    assert found.roots == (("", "/data"),)
    assert found.binds == (("127.0.0.1", 7420),)
    assert (found.unix, found.writable, found.hidden, found.links) == ((), False, True, "follow")
    assert (found.limit_rate, found.lanes, found.grace) == (0, None, 30)
    assert (found.access_log, found.log_format, found.summary) == ("", "text", False)
    assert 4 * MIB <= found.pool_size <= 64 * MIB


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(toml):
    config = toml('port = 1\ngrace = 1\nlinks = "refuse"\nwritable = true')
    environment = {"ZCSERVER_PORT": "2", "ZCSERVER_GRACE": "2", "ZCSERVER_CONFIG": "/not/looked/at"}
    found = settings({"port": "3", "links": None, "bind": []}, config, environment)
    assert (found.binds, found.grace, found.links, found.writable) == ((("127.0.0.1", 3),), 2, "refuse", True)


def test_the_environment_can_name_the_file(toml):
    assert settings(environment={"ZCSERVER_CONFIG": toml("grace = 7.5")}).grace == 7.5


# One value for each setting, as text, in TOML, and what it becomes.
VALUES = {
    "roots": ("a=/x,b=/y", '{a = "/x", b = "/y"}', ("roots", (("a", "/x"), ("b", "/y")))),
    "bind": ("*,[::1]:9", '["*", "[::1]:9"]', ("binds", (("*", 7420), ("::1", 9)))),
    "port": ("0", "0", ("binds", (("127.0.0.1", 0),))),
    "writable": ("yes", "true", ("writable", True)),
    "hidden": ("0", "false", ("hidden", False)),
    "links": ("refuse", '"refuse"', ("links", "refuse")),
    "pool_size": ("1.5M", '"1.5M"', ("pool_size", 3 * MIB // 2)),
    "limit_rate": ("4096", "4096", ("limit_rate", 4096)),
    "lanes": ("file,copy", '["file", "copy"]', ("lanes", ("file", "copy"))),
    "grace": ("0.5", "0.5", ("grace", 0.5)),
    "access_log": ("/var/log/zc", '"/var/log/zc"', ("access_log", "/var/log/zc")),
    "log_format": ("json", '"json"', ("log_format", "json")),
    "summary": ("on", "true", ("summary", True)),
    "topics": ("yes", "true", ("topics", True)),
    "stdin": ("log", '"log"', ("stdin", "/log")),
    "stdin_as": ("64K", '"64K"', ("stdin_as", 65536)),
    "retain": ("8M", '"8M"', ("retain", 8 * MIB)),
    "retain_count": ("10", "10", ("retain_count", 10)),
    "retain_seconds": ("2.5", "2.5", ("retain_seconds", 2.5)),
    "allow_block": ("on", "true", ("allow_block", True)),
}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_can_be_given_in_each_way(setting, toml):
    text, in_toml, (field, value) = VALUES[setting.key]
    config = toml(f"{setting.key} = {in_toml}")
    base = {} if setting.key == "roots" else {"roots": ["/data"]}
    if setting.key in {"stdin_as", "retain", "retain_count", "retain_seconds", "allow_block"}:
        base["stdin"] = "topic"  # else an option like these is refused
    for found in (
        serve_settings(base | {setting.key: text}, None, {}),
        serve_settings(base, None, {setting.variable: text}),
        serve_settings(base, config, {}),
    ):
        assert getattr(found, field) == value
    assert setting.help


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("192.0.2.1", ("192.0.2.1", 7420)),
        ("host:80", ("host", 80)),
        ("*:0", ("*", 0)),
        ("::1", ("::1", 7420)),
        ("[::1]", ("::1", 7420)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
    ],
)
def test_an_address_is_read(text, bind):
    assert settings({"bind": [text]}).binds == (bind,)


@pytest.mark.parametrize(
    "text", ["7000", ":7000", "[::1", "[::1]80", "[::1]:", "host:", "host:x", "host:65536", "[]:80", "unix:"]
)
def test_what_is_no_address_is_refused(text):
    assert wrong({"bind": [text]}).startswith("--bind: ")


def test_unix_sockets_stand_among_the_addresses_or_alone():
    found = settings({"bind": ["unix:/run/zc.sock", "*:1", "unix:other:socket"]})
    assert (found.binds, found.unix) == ((("*", 1),), ("/run/zc.sock", "other:socket"))
    assert settings({"bind": ["unix:/run/zc.sock"]}).binds == ()


def test_directories_may_have_names_and_get_them_where_there_are_several():
    assert settings({"roots": ["/srv/a"]}).roots == (("", "/srv/a"),)
    assert settings({"roots": ["x=/srv/a"]}).roots == (("x", "/srv/a"),)
    assert settings({"roots": ["./x=y"]}).roots == (("", "./x=y"),)
    assert settings({"roots": ["/srv/a/", "x=/srv/b"]}).roots == (("a", "/srv/a/"), ("x", "/srv/b"))
    assert "NAME=DIR" in wrong({"roots": ["/srv/a", "/mnt/a"]})
    assert "NAME=DIR" in wrong({"roots": ["/", "/mnt/a"]})
    assert "zcserver serve DIR" in wrong({"roots": []})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("port", "x"), ("port", "-1"), ("port", "65536"), ("port", "²"), ("pool_size", "many"),
        ("grace", "-1"), ("grace", "nan"), ("grace", "inf"), ("links", "ignore"), ("log_format", "xml"),
        ("lanes", "air"),
        ("writable", "maybe"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_source(key, text, toml):
    option = "--" + key.replace("_", "-")
    assert wrong({key: text}).startswith(f"{option}: ")
    assert wrong(environment={f"ZCSERVER_{key.upper()}": text}).startswith(f"ZCSERVER_{key.upper()}: ")
    config = toml(f'{key} = "{text}"')
    assert wrong(config=config).startswith(f"{config}: {key}: ")
    assert text in wrong({key: text})


@pytest.mark.parametrize(
    "line",
    ["port = true", "port = 1.5", "writable = 1", "grace = true", "grace = []", "access_log = 1",
     "bind = [1]", "pool_size = -1", "pool_size = 1.5", "roots = {a = 1}", "links = true", "lanes = 7"],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused(line, toml):
    config = toml(line)
    assert wrong({"roots": None if line.startswith("roots") else ["/data"]}, config).startswith(f"{config}: ")


def test_an_unknown_key_is_refused_with_what_was_meant(toml):
    assert wrong(config=toml("writeable = true")).endswith("no setting 'writeable' (did you mean writable?)")
    assert wrong(config=toml("pool-size = 1")).endswith("(did you mean pool_size?)")
    assert "did you mean" not in wrong(config=toml("colour = 1"))
    assert "did you mean ZCSERVER_WRITABLE?" in wrong(environment={"ZCSERVER_WRITEABLE": "1"})
    settings(environment={"ZCSERVER_TEST_KERNELS": "reference", "OTHER": "1", "ZCSERVER_PORT": ""})


def test_a_file_that_cannot_be_used_is_told(toml, tmp_path):
    assert "No such file" in wrong(config=str(tmp_path / "none"))
    assert "Is a directory" in wrong(config=str(tmp_path))
    assert "is no TOML" in wrong(config=toml("port = "))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "is no TOML" in wrong(config=str(tmp_path / "binary"))


def test_topics_need_no_directory_and_a_pool_that_holds_what_they_retain():
    found = serve_settings({"topics": True, "retain": "64M"}, None, {})
    assert (found.roots, found.topics) == ((), True)
    assert 2 * found.retain <= found.pool_size
    found = serve_settings({"stdin": "tv", "stdin_as": "lines"}, None, {})
    assert (found.stdin, found.stdin_as) == ("/tv", LINES)
    assert "--pool-size to 33554432" in wrong({"topics": True, "retain": "16M", "pool_size": "16M"})
    for given in ({"retain_count": "0"}, {"stdin_as": "words"}, {"topics": True, "retain": "0"}):
        assert wrong(given)
