"""Values that point to media."""

from __future__ import annotations

import base64

import pytest

from lsml_cli.media import LocalMedia


def test_paths_below_the_root(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.bin").write_bytes(b"bytes")
    media = LocalMedia(tmp_path)
    assert media.fetch("in/a b.bin") == b"bytes"
    assert media.fetch(str(tmp_path / "in" / "a b.bin")) == b"bytes"
    with pytest.raises(FileNotFoundError):
        media.fetch("in/c.bin")


@pytest.mark.parametrize("value", ["../secret", "/etc/passwd", "in/../../secret", "link"])
def test_a_path_never_leaves_the_root(tmp_path, value):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="lies outside"):
        LocalMedia(root).fetch(value)


@pytest.mark.parametrize("value", ["https://example.com/a.jpg", "s3://bucket/a.jpg", "file:///etc/passwd"])
def test_what_is_not_on_this_machine_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="is not on this machine"):
        LocalMedia(tmp_path).fetch(value)


def test_data_uris(tmp_path):
    media = LocalMedia(tmp_path)
    assert media.fetch("data:text/plain;base64," + base64.b64encode(b"hi").decode()) == b"hi"
    assert media.fetch("data:,h%20i") == b"h i"
    for wrong in ("data:text/plain", "data:;base64,***"):
        with pytest.raises(ValueError, match="data: URI"):
            media.fetch(wrong)
