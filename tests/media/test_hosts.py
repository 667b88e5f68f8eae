"""Allowed hosts: names, patterns, addresses, redirects, and names that resolve differently the second time."""

from __future__ import annotations

import pickle
import socket
import threading

import pytest

from lsml_cli.errors import UsageError
from lsml_cli.media.fetcher import ANY_HOST, AllowedHosts, Media
from lsml_cli.media.hosts import is_public
from tests.helpers.media_servers import IMAGE_BYTES, StubResponse, run_stub_server


@pytest.mark.parametrize(
    ("entry", "host", "port", "trust"),
    [
        ("images.example.com", "images.example.com", 80, "named"),
        ("images.example.com", "IMAGES.example.com.", 8080, "named"),
        ("images.example.com:8080", "images.example.com", 8080, "named"),
        ("images.example.com:8080", "images.example.com", 80, None),
        ("images.example.com", "evil-images.example.com", 80, None),
        ("images.example.com", "images.example.com.evil.com", 80, None),
        ("*.example.com", "a.b.example.com", 80, "wildcard"),
        ("*.example.com", "example.com", 80, None),
        ("*.example.com", "evilexample.com", 80, None),
        ("*.example.com:443", "a.example.com", 80, None),
        ("*", "anything.at.all", 12345, "wildcard"),
        ("*:443", "anything.at.all", 80, None),
        ("127.0.0.1", "127.0.0.1", 9, "named"),
        ("[::1]:80", "::1", 80, "named"),
        ("::1", "0:0:0:0:0:0:0:1", 80, "named"),
        ("bücher.example", "xn--bcher-kva.example", 80, "named"),
        ("s3://bucket", "bucket", 80, None),
    ],
)
def test_trust_level_of_names_and_patterns(entry, host, port, trust):
    assert AllowedHosts((entry,)).trust_level(host, port) == trust
    assert pickle.loads(pickle.dumps(AllowedHosts((entry,)))) == AllowedHosts((entry,))
    assert AllowedHosts(("*", entry)).trust_level(host, port) == ("named" if trust == "named" else "wildcard")


def test_trust_level_of_no_and_any_host():
    assert AllowedHosts().trust_level("example.com", 80) is None
    assert ANY_HOST.trust_level("169.254.169.254", 80) == "named"


@pytest.mark.parametrize(
    "entry",
    [
        *("", "https://example.com", "example.com/a", "user@example.com", "a b", "*example.com", "a.*.com"),
        *("example.com:x", "s3://", "s3://bucket/key", "ftp://bucket", "."),
    ],
)
def test_invalid_entries_are_rejected(entry):
    with pytest.raises(UsageError, match="is not a host"):
        AllowedHosts((entry,))


PRIVATE = """
127.0.0.1 127.8.8.8 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 239.1.1.1 240.0.0.1
255.255.255.255 192.0.2.1 198.18.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 fec0::1 2001:db8::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::1 2002:7f00:1::1
2002:a9fe:a9fe::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
"""


def test_is_public():
    assert [address for address in PRIVATE.split() if is_public(address)] == []
    for address in ("93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"):
        assert is_public(address)


@pytest.fixture
def site():
    with run_stub_server() as site:
        site.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        yield site


def test_unlisted_host_gets_no_request(site):
    media = Media(allowed_hosts=AllowedHosts(("example.com",)))
    sentence = r"127\.0\.0\.1 is not among the hosts that media may come from \(--allow-host 127\.0\.0\.1 adds it\)"
    with pytest.raises(ValueError, match=sentence):
        media.fetch(f"{site.url}/a")
    assert "not among the hosts" in str(media.find_problem(f"{site.url}/a"))  # known without a request
    assert site.connection_count == 0
    media.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0", "[::ffff:127.0.0.1]"])
def test_wildcard_reaches_no_private_address(site, host):
    """However it is spelled; no request is sent."""
    media = Media(allowed_hosts=AllowedHosts(("*",)))
    with pytest.raises(ValueError, match="has an address that is not public"):
        media.fetch(f"http://{host}:{site.port}/a")
    assert site.connection_count == 0
    media.close()


def test_redirect_revalidates_host(site):
    with run_stub_server() as other:
        other.responses["/a"] = StubResponse(body=b"inside")
        site.redirect("/to-port", f"{other.url}/a")
        site.redirect("/to-name", f"http://localhost:{other.port}/a")
        site.redirect("/to-metadata", "http://169.254.169.254/latest/meta-data/")
        media = Media(allowed_hosts=AllowedHosts((f"127.0.0.1:{site.port}", "*.internal", "*")))
        for path in ("/to-port", "/to-name", "/to-metadata"):
            with pytest.raises(ValueError, match=f"{path}: .*not public"):
                media.fetch(site.url + path)
        strict = Media(allowed_hosts=AllowedHosts((f"127.0.0.1:{site.port}",)))
        for path in ("/to-port", "/to-name", "/to-metadata"):
            with pytest.raises(ValueError, match=f"{path}: .*not among the hosts"):
                strict.fetch(site.url + path)
        assert other.connection_count == 0
        media.close()
        strict.close()


def test_dns_rebinding_is_prevented(site, monkeypatch):
    """The name is resolved once, and the checked address is connected to."""
    with run_stub_server(host="127.0.0.2") as public:
        public.responses["/a"] = StubResponse(body=b"public")
        resolved = []

        def rebinding(host, port, *args, **kwargs):
            resolved.append(host)
            address = "127.0.0.2" if len(resolved) == 1 else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, public.port))]

        monkeypatch.setattr("lsml_cli.media.ssrf_guard.is_public", lambda address: address == "127.0.0.2")
        monkeypatch.setattr("lsml_cli.media.ssrf_guard.socket.getaddrinfo", rebinding)
        media = Media(allowed_hosts=AllowedHosts(("*.example.com",)))
        monkeypatch.setattr("socket.create_connection", connect_by_address)
        assert media.fetch(f"http://a.example.com:{public.port}/a") == b"public"
        assert resolved == ["a.example.com"]
        with pytest.raises(ValueError, match="has an address that is not public"):
            media.fetch(f"http://b.example.com:{public.port}/a")
        media.close()


def connect_by_address(address, timeout=None, source_address=None):
    """Connect like socket.create_connection, without the look-up that the test has replaced."""
    connection = socket.socket(socket.AF_INET)
    connection.settimeout(timeout)
    socket.inet_aton(address[0])  # fails for a name
    connection.connect(address)
    return connection


def test_proxy_is_ignored_for_restricted_hosts(site, monkeypatch):
    """Behind a proxy the address of the host cannot be checked."""
    with run_stub_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        restricted, unrestricted = Media(allowed_hosts=AllowedHosts(("127.0.0.1",))), Media()
        assert restricted.fetch(f"{site.url}/a") == IMAGE_BYTES
        assert proxy.connection_count == 0
        with pytest.raises(ValueError, match="404"):  # the proxy's answer
            unrestricted.fetch(f"{site.url}/a")
        assert proxy.connection_count == 1
        restricted.close()
        unrestricted.close()


def test_fetching_is_thread_safe(site):
    media = Media(allowed_hosts=AllowedHosts(("127.0.0.1",)))
    site.responses |= {f"/{n}": StubResponse(body=str(n).encode()) for n in range(300)}
    contents: dict[int, bytes] = {}

    def work(first):
        for n in range(first, 300, 30):
            contents[n] = media.fetch(f"{site.url}/{n}")

    threads = [threading.Thread(target=work, args=(first,)) for first in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == {n: str(n).encode() for n in range(300)}
    assert site.connection_count <= 30
    media.close()
