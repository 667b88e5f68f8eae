"""Fetch values from folders of this machine, folders of Label Studio, mapped folders and data: URIs."""

from __future__ import annotations

import base64
import os
import pickle
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lsml_cli.media.fetcher import AllowedHosts, Cache, LabelStudioCredentials, Media
from lsml_cli.media.files import ConfinedPath
from lsml_cli.media.resolver import MediaLocation, locate
from tests.helpers.media_servers import IMAGE_BYTES, StubResponse, run_stub_server


def test_paths_below_root_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.bin").write_bytes(b"bytes")
    media = Media(tmp_path)
    for value in ("in/a b.bin", str(tmp_path / "in" / "a b.bin"), "in/a%20b.bin", "./in//a b.bin"):
        assert media.fetch(value) == b"bytes"
        assert media.find_problem(value) is None
    with pytest.raises(FileNotFoundError):
        media.fetch("in/c.bin")
    assert media.find_problem("in/c.bin") == f"there is no file {tmp_path / 'in' / 'c.bin'}"


def test_literal_name_precedes_decoded_name(tmp_path):
    (tmp_path / "50%25.png").write_bytes(b"as it stands")
    (tmp_path / "50%.png").write_bytes(b"decoded")
    assert Media(tmp_path).fetch("50%25.png") == b"as it stands"
    (tmp_path / "50%25.png").unlink()
    assert Media(tmp_path).fetch("50%25.png") == b"decoded"


@pytest.mark.parametrize(
    "value",
    ["../secret", "/etc/passwd", "in/../../secret", "link", "in/../a", "%2e%2e/secret", "folder/secret", "in/..%2fa"],
)
def test_path_never_leaves_root(tmp_path, value):
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "a").write_text("inside")
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"lies outside|leads upwards"):
        Media(root).fetch(value)
    assert Media(root).find_problem(value) is not None


def test_links_within_root_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"a")
    (tmp_path / "real" / "b").symlink_to("a")
    (tmp_path / "root").symlink_to("real")
    assert Media(tmp_path / "root").fetch("b") == b"a"


def test_only_regular_files_are_read(tmp_path):
    """A FIFO would block a worker; a device may never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    media = Media(tmp_path)
    for value in ("pipe", "folder", ".", "circle"):
        with pytest.raises((ValueError, OSError)):
            media.fetch(value)
        assert media.find_problem(value) is not None
    with pytest.raises(ValueError, match="/dev/zero is not a file"):
        Media(Path("/dev")).fetch("zero")


@pytest.mark.parametrize("value", ["", "a\0b", "a%00b", "x" * 5000, "\udcff", "http://[", "a" * 70_000])
def test_invalid_names_raise(tmp_path, value):
    with pytest.raises((ValueError, OSError)) as error:
        Media(tmp_path).fetch(value)
    assert len(str(Media(tmp_path).find_problem(value))) < 80_000
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("value", ["file:///etc/passwd", "ftp://example.com/a", "javascript:alert(1)"])
def test_other_schemes_are_rejected(tmp_path, value):
    with pytest.raises(ValueError, match="neither a file on this machine nor"):
        Media(tmp_path).fetch(value)


def test_too_large_file_is_rejected(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 101)
    media = Media(tmp_path, max_bytes=100)
    with pytest.raises(ValueError, match="has more than 100 bytes"):
        media.fetch("a")
    assert "more than 100 bytes" in str(media.find_problem("a"))
    assert Media(tmp_path, max_bytes=101).fetch("a")


def test_no_path_is_read_without_root(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    for value in ("a", str(tmp_path / "a"), "/etc/passwd"):
        with pytest.raises(ValueError, match="no folder was named"):
            Media().fetch(value)
        with pytest.raises(ValueError, match=r"below the document root is named /data/local-files/\?d="):
            Media(document_root=tmp_path).fetch(value)


def test_data_uris_are_decoded(tmp_path):
    media = Media(tmp_path)
    assert media.fetch("data:text/plain;base64," + base64.b64encode(b"hi").decode()) == b"hi"
    assert media.fetch("DATA:;base64,aGk%3D") == b"hi"
    assert media.fetch("data:,h%20i") == b"h i"
    for value in ("data:text/plain", "data:;base64,***"):
        with pytest.raises(ValueError, match="data: URI"):
            media.fetch(value)
        assert "data: URI" in str(media.find_problem(value))


# The folders of a Label Studio


@pytest.fixture
def studio_folders(tmp_path):
    """(document root, upload root) with files of awkward names."""
    documents, uploads = tmp_path / "documents", tmp_path / "media" / "upload"
    for path in (documents / "my imgs" / "é+1 &.png", uploads / "3" / "b53d73af-img_0 é.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(path.name.encode())
    (tmp_path / "secret").write_text("secret")
    return documents, uploads


@pytest.mark.parametrize(
    "value",
    [
        "/data/local-files/?d=my%20imgs/%C3%A9%2B1%20%26.png",  # as Label Studio writes it
        "/data/local-files/?d=my+imgs/%C3%A9%2B1+%26.png",  # as a form would
        "/data/local-files/?d=/my%20imgs/%C3%A9%2B1%20%26.png",
        "/data/local-files?d=my%20imgs/%C3%A9%2B1%20%26.png",
        "/data/local-files/?d=my imgs/é+1 &.png",  # by hand
        "/data/local-files/?d=nothing&d=my%20imgs/%C3%A9%2B1%20%26.png",  # the last one counts
    ],
)
def test_local_files_are_found_below_document_root(studio_folders, value):
    assert Media(document_root=studio_folders[0]).fetch(value) == "é+1 &.png".encode()


@pytest.mark.parametrize(
    "value",
    ["/data/upload/3/b53d73af-img_0%20%C3%A9.png", "/data/upload/3/b53d73af-img_0 é.png"],
)
def test_uploads_are_found_below_upload_root(studio_folders, value):
    media = Media(upload_root=studio_folders[1])
    assert media.fetch(value) == "b53d73af-img_0 é.png".encode()
    assert media.find_problem(value) is None


@pytest.mark.parametrize(
    "value",
    [
        "/data/local-files/?d=../secret",
        "/data/local-files/?d=%2e%2e%2fsecret",
        "/data/local-files/?d=my%20imgs/../../secret",
        "/data/upload/../../secret",
        "/data/upload/%2e%2e/%2e%2e/secret",
        "/data/upload/..%5csecret",
    ],
)
def test_path_never_leaves_folders_of_label_studio(studio_folders, value):
    documents, uploads = studio_folders
    with pytest.raises(ValueError, match=r"lies outside|leads upwards"):
        Media(document_root=documents, upload_root=uploads).fetch(value)


def test_message_names_helpful_options(studio_folders):
    documents, uploads = studio_folders
    options_by_value = {
        "/data/upload/3/a.png": ("--label-studio-url", "--upload-root"),
        "/data/local-files/?d=a.png": ("--label-studio-url", "--document-root"),
    }
    for value, options in options_by_value.items():
        problem = Media(documents).find_problem(value)
        assert all(option in str(problem) for option in options)
    problem = Media(upload_root=uploads).find_problem("/data/upload/3/a.png")
    assert problem == f"there is no file {uploads}/3/a.png; with --label-studio-url the server is asked"


def test_local_folder_may_be_named_like_an_upload():
    """Tasks in /data/upload may point to images there. (No test can create that folder.)"""
    value = "/data/upload/mine/a.png"

    def locate_below(root: str) -> MediaLocation:
        return locate(value, root=Path(root), document_root=None, upload_root=None, prefix_map=(), credentials=None)

    candidate = ConfinedPath(Path("/data/upload/mine"), value)
    assert locate_below("/data/upload/mine") == MediaLocation("label_studio", value, (candidate,))
    assert locate_below("/data/upload/other").candidates == ()


def test_own_label_studio_address_is_looked_up_locally_first(studio_folders):
    documents, uploads = studio_folders
    media = Media(
        document_root=documents, upload_root=uploads, label_studio=LabelStudioCredentials("http://127.0.0.1:9/ls/")
    )
    value = "/data/upload/3/b53d73af-img_0%20%C3%A9.png"
    for address in (value, f"/ls{value}", f"http://127.0.0.1:9/ls{value}"):
        assert media.fetch(address) == "b53d73af-img_0 é.png".encode()


# --map


@pytest.fixture
def mapped(tmp_path):
    (tmp_path / "copy" / "deep").mkdir(parents=True)
    (tmp_path / "copy" / "a b.png").write_bytes(b"copy")
    (tmp_path / "copy" / "deep" / "a.png").write_bytes(b"deep")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("prefix", "value"),
    [
        ("s3://bucket/", "s3://bucket/a b.png"),
        ("s3://bucket", "s3://bucket/a%20b.png"),
        ("https://old.host/", "https://old.host/a%20b.png"),
        ("https://old.host/", "https://old.host/a%20b.png?signature=1"),
        ("/data/local-files/?d=", "/data/local-files/?d=a%20b.png"),
        ("/data/local-files/?d=", "/data/local-files/?d=/a b.png"),
        ("/elsewhere/", "/elsewhere/a b.png"),
        ("old_", "old_a b.png"),
    ],
)
def test_mapped_prefix_is_replaced(mapped, prefix, value):
    media = Media(prefix_map=((prefix, mapped),))
    assert media.fetch(value) == b"copy"
    assert media.find_problem(value) is None


def test_mapped_value_is_looked_up_only_there(mapped, tmp_path):
    (tmp_path / "b.png").write_bytes(b"root")
    media = Media(tmp_path, prefix_map=(("", mapped), ("deep/", mapped / "deep"), ("https://127.0.0.1:9/", mapped)))
    assert media.fetch("deep/a.png") == b"deep"  # the longest prefix
    for value in ("b.png", "https://127.0.0.1:9/b.png"):
        with pytest.raises(FileNotFoundError):
            media.fetch(value)
        assert media.find_problem(value) == f"there is no file {mapped}/b.png"
    with pytest.raises(ValueError, match="lies outside"):
        media.fetch("deep/../../b.png")


def test_prefix_does_not_match_within_a_name(mapped):
    media = Media(prefix_map=(("gs://bucket", mapped),))  # no test installs its driver
    assert "bucket-2" in str(media.find_problem("gs://bucket-2/a b.png"))


# Arbitrary values

awkward_values = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [
                *(
                    "..",
                    ".",
                    "/",
                    "//",
                    "%2e",
                    "%2f",
                    "%2E%2E%2F",
                    "%00",
                    "\0",
                    "in",
                    "link",
                    "loop",
                    "secret",
                    "a",
                    "\\",
                ),
                *(
                    "/data/upload/",
                    "/data/local-files/?d=",
                    "&d=",
                    "?",
                    "#",
                    "s3://bucket/",
                    "http://ls/",
                    "%252e",
                    "~",
                ),
                *("file://", "pipe", "é", "%C3%A9", "+", " ", "\udc80", "%ff", "https://old/"),
            ]
        ),
        max_size=8,
    ).map("".join),
)


@pytest.fixture(scope="module")
def root_with_links(tmp_path_factory):
    """A folder that holds links to secrets beside it."""
    around = tmp_path_factory.mktemp("around")
    root = around / "root"
    (root / "in").mkdir(parents=True)
    for path in (root / "a", root / "in" / "a", root / "in" / "é"):
        path.write_text("open")
    for path in (around / "secret", around / "a"):
        path.write_text("secret")
    (root / "link").symlink_to(around)
    (root / "in" / "link").symlink_to("../../secret")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=awkward_values, as_root=st.booleans())
@example(value="link/secret", as_root=True)
@example(value="/data/upload/link/secret", as_root=True)
@example(value="/data/local-files/?d=%2e%2e/secret", as_root=False)
def test_no_value_reads_outside_of_folders(root_with_links, value, as_root):
    media = Media(
        root_with_links if as_root else None,
        document_root=root_with_links,
        upload_root=root_with_links / "in",
        prefix_map=(("https://old/", root_with_links), ("s3://bucket/", root_with_links / "in")),
        allowed_hosts=AllowedHosts(),
    )
    try:
        content = media.fetch(value)
    except (ValueError, OSError):
        problem = media.find_problem(value)
        assert problem is not None
    else:
        assert content == b"open" or value[:5].lower() == "data:"
        assert media.find_problem(value) is None


# One process, many threads; another process


def test_pickling_drops_connections(tmp_path):
    with run_stub_server() as site:
        site.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        media = Media(
            tmp_path, cache=Cache(tmp_path / "cache"), label_studio=LabelStudioCredentials("http://ls", "the-key")
        )
        assert media.fetch(f"{site.url}/a") == IMAGE_BYTES
        copy = pickle.loads(pickle.dumps(media))
        assert copy == media
        assert copy.label_studio.key == "the-key"
        assert copy.fetch(f"{site.url}/a") == IMAGE_BYTES
        copy.close()
        media.close()


def test_concurrent_fetches_of_one_file_are_shared(tmp_path):
    with run_stub_server() as site:
        release = threading.Event()

        def respond(handler):
            release.wait(5)
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

        site.responses["/a"] = respond
        site.responses["/b"] = StubResponse(404)
        media = Media()
        contents: list[bytes] = []
        threads = [threading.Thread(target=lambda: contents.append(media.fetch(f"{site.url}/a"))) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        release.set()
        for thread in threads:
            thread.join()
        assert contents == [b"hi"] * 12
        assert site.paths == ["/a"]
        for _ in range(2):  # a failure is not kept
            with pytest.raises(ValueError, match="404"):
                media.fetch(f"{site.url}/b")
        assert site.paths.count("/b") == 2
        media.close()


def test_connections_are_reused(tmp_path):
    with run_stub_server() as site:
        site.responses["/moved"] = StubResponse(302, headers={"Location": "/a"})
        site.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        media = Media()
        for _ in range(5):
            assert media.fetch(f"{site.url}/moved?{quote('é')}") == IMAGE_BYTES
        assert site.connection_count == 1
        media.close()
