"""What a Redis URL says, and what is said about a wrong one."""

from __future__ import annotations

import ssl

import pytest

from gateway.logs.redis_url import Address, parse

HUSH = "hush%23%40%3A1"  # hush#@:1


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("redis://h", [("h", 6379)]),
        ("redis://h:1234/", [("h", 1234)]),
        ("redis://u:p@h:1,i,[::1]:3,[fe80::1]/2", [("h", 1), ("i", 6379), ("::1", 3), ("fe80::1", 6379)]),
        (" rediss://h/0 ", [("h", 6379)]),
        ("redis+sentinel://h,i:5/mymaster", [("h", 26379), ("i", 5)]),
    ],
)
def test_addresses(url: str, addresses: list[tuple[str, int]]) -> None:
    assert parse(url).addresses == tuple(Address(*address) for address in addresses)


def test_the_rest() -> None:
    plain = parse("redis://h")
    assert (plain.database, plain.username, plain.password, plain.prefix) == (0, None, None, "convobase")
    assert (plain.tls, plain.sentinel_of) == (None, None)
    full = parse(f"redis://us%20er:{HUSH}@h/7?prefix=a.b:c&socket_timeout=1.5&socket_connect_timeout=0.5")
    assert (full.database, full.username, full.password, full.prefix) == (7, "us er", "hush#@:1", "a.b:c")
    assert (full.command_s, full.connect_s) == (1.5, 0.5)
    assert parse("redis://:p@h").username is None
    sentinel = parse("rediss+sentinel://u:p@h/my/3?sentinel_username=su&sentinel_password=sp&ssl_check_hostname=no")
    assert (sentinel.sentinel_of, sentinel.database, sentinel.tls) == ("my", 3, {"ssl_check_hostname": False})
    assert (sentinel.sentinel_username, sentinel.sentinel_password) == ("su", "sp")
    tls = parse("rediss://h?ssl_ca_certs=/ca.pem&ssl_cert_reqs=none&ssl_min_version=1.3").tls
    assert tls == {"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "none", "ssl_min_version": ssl.TLSVersion.TLSv1_3}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis:", "give redis://host:6379/0"),
        ("redis:h", "give redis://host:6379/0"),
        ("redis+unix://h", "give redis://host:6379/0"),
        ("redis://[x", "no URL"),
        ("redis://", "a host"),
        ("redis://u:hush@", "a host"),
        ("redis://h,", "a host"),
        ("redis://h:0", "a port from 1"),
        ("redis://h:65536", "a port from 1"),
        ("redis://h:hush", "a port from 1"),
        ("redis://u:hush#x@h", "write # in a password as %23"),
        ("redis://h/hush", "the database is a number"),
        ("redis://h/0#hush", "the database is a number"),
        ("redis+sentinel://h", "name of the primary"),
        ("redis+sentinel://h/m/x", "the database is a number"),
        ("redis://h?ssl_ca_certs=x", "ssl_ca_certs needs a rediss"),
        ("redis://h?speed=hush", "no option 'speed'"),
        ("redis://h?sentinel_password=hush", "no option 'sentinel_password'"),
        ("redis://h?prefix={hush}", "prefix has a wrong value"),
        ("redis://h?prefix=", "prefix has a wrong value"),
        ("redis://h?socket_timeout=0", "socket_timeout has a wrong value"),
        ("redis://h?socket_timeout=hush", "socket_timeout has a wrong value"),
        ("rediss://h?ssl_cert_reqs=hush", "ssl_cert_reqs has a wrong value"),
        ("rediss://h?ssl_check_hostname=hush", "ssl_check_hostname has a wrong value"),
        ("rediss://h?ssl_min_version=1.0", "ssl_min_version has a wrong value"),
    ],
)
def test_a_wrong_one_is_refused_with_one_line(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"^LOG_URL: ") as refused:
        parse(url)
    assert problem in str(refused.value)
    assert "hush" not in str(refused.value)


def test_credentials_are_not_shown() -> None:
    assert str(parse("redis://user:hush@h:1,[::1]:2/5")) == "h:1,[::1]:2"
    assert str(parse("redis+sentinel://user:hush@h/my/5")) == "Sentinel my at h:26379"
