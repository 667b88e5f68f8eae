"""The cache of remote media: bounded, atomic, and never a reason for a task to fail."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from lsml_cli.media.fetcher import AllowedHosts, Cache, LabelStudioCredentials, Media
from tests.helpers.media_servers import IMAGE_BYTES, StubResponse, run_stub_server


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_of(folder))


def test_cached_file_is_not_fetched_again(tmp_path):
    with run_stub_server() as site:
        site.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        (tmp_path / "local").write_bytes(b"local")
        for _ in range(2):  # also by another process
            media = Media(tmp_path, cache=Cache(tmp_path / "cache"))
            assert media.fetch(f"{site.url}/a") == IMAGE_BYTES
            assert media.fetch("local") == b"local"
            with pytest.raises(ValueError, match="404"):
                media.fetch(f"{site.url}/b")
            media.close()
        assert site.paths == ["/a", "/b", "/b"]
    assert len(files_of(tmp_path / "cache")) == 1
    assert size_of(tmp_path / "cache") < len(IMAGE_BYTES) + 100


def test_cache_is_separate_for_other_allowed_hosts(tmp_path):
    """A command may send requests anywhere; a server that shares its cache may not."""
    with run_stub_server() as site:
        site.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        unrestricted = Media(cache=Cache(tmp_path))
        assert unrestricted.fetch(f"{site.url}/a") == IMAGE_BYTES
        unrestricted.close()
        site.redirect("/moved", f"http://localhost:{site.port}/a")
        unrestricted.fetch(f"{site.url}/moved")
        restricted = Media(cache=Cache(tmp_path), allowed_hosts=AllowedHosts((f"127.0.0.1:{site.port}",)))
        with pytest.raises(ValueError, match="not among the hosts"):
            restricted.fetch(f"{site.url}/moved")
        smaller = Media(cache=Cache(tmp_path), max_bytes=3)
        with pytest.raises(ValueError, match="more than 3 bytes"):
            smaller.fetch(f"{site.url}/a")
        for media in (unrestricted, restricted, smaller):
            media.close()


@pytest.mark.parametrize(
    ("media", "key"),
    [
        (Media(), "(None, Hosts(names=(), anywhere=True), 'https://h/a')"),
        (
            Media(label_studio=LabelStudioCredentials("http://ls/"), allowed_hosts=AllowedHosts((" H:80.", "s3://b/"))),
            "('http://ls', Hosts(names=('h:80', 's3://b'), anywhere=False), 'https://h/a')",
        ),
    ],
)
def test_cache_key_is_stable_across_versions(media, key):
    """Another key would make every file in the caches of users useless."""
    assert media._cache_key("https://h/a") == key


def test_damaged_files_are_dropped(tmp_path):
    cache = Cache(tmp_path)
    for damage in (b"", b"\0" * 200, b"x"):
        cache.put("a", IMAGE_BYTES)
        [path] = files_of(tmp_path)
        path.write_bytes(damage)
        assert cache.get("a") is None
        assert files_of(tmp_path) == []
    cache.put("a", IMAGE_BYTES)
    assert cache.get("a") == IMAGE_BYTES
    assert cache.get("b") is None
    cache.put("empty", b"")
    assert cache.get("empty") == b""


def test_size_is_bounded_and_used_files_stay(tmp_path):
    cache = Cache(tmp_path, max_bytes=100_000)
    cache.put("used", b"x" * 1000)
    largest = 0
    for n in range(500):
        cache.put(f"file {n}", bytes(1000))
        if n % 10 == 0:
            assert cache.get("used") is not None
        largest = max(largest, size_of(tmp_path)) if n % 20 == 0 else largest
        os.utime(files_of(tmp_path)[0])  # as if time went on
    assert largest <= 100_000 * (1 + 2 / 32)
    assert size_of(tmp_path) >= 80_000
    assert cache.get("used") == b"x" * 1000
    cache.put("larger than all", bytes(100_001))
    assert cache.get("larger than all") is None


def test_only_own_files_are_removed(tmp_path):
    foreign = [tmp_path / "thesis.doc", tmp_path / "ab" / "photo.jpg", tmp_path / "folder" / ("a" * 62)]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(50_000))
    (tmp_path / "cd").symlink_to("folder")
    young, old = (tmp_path / "ab" / f"{'a' * 62}.{name}.part" for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"unfinished")
    os.utime(old, (time.time() - 7200,) * 2)
    cache = Cache(tmp_path, max_bytes=10_000)
    for n in range(100):
        cache.put(str(n), bytes(1000))
    assert all(path.exists() for path in (*foreign, young))
    assert not old.exists()


def test_unwritable_folder_does_not_fail_fetch(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with run_stub_server() as site:
        site.responses["/a"] = StubResponse(body=IMAGE_BYTES)
        for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing"), Path("/dev/full")):
            media = Media(cache=Cache(folder))
            assert media.fetch(f"{site.url}/a") == IMAGE_BYTES
            media.close()


def test_threads_and_eviction_do_not_interfere(tmp_path):
    cache = Cache(tmp_path, max_bytes=50_000)
    damaged = []

    def work(seed: int) -> None:
        for n in range(200):
            name = f"{(seed * 7 + n) % 90}"
            content = cache.get(name)
            if content is not None and content != name.encode() * 1000:
                damaged.append(name)
            cache.put(name, name.encode() * 1000)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert damaged == []
    cache.evict()
    assert size_of(tmp_path) <= 50_000
    assert not [path for path in files_of(tmp_path) if path.name.endswith(".part")]


def fill(folder: Path, seed: int) -> None:
    cache = Cache(folder, max_bytes=50_000)
    for n in range(300):
        name = f"{seed} {n}"
        cache.put(name, name.encode() * 100)
        assert cache.get(name) in (None, name.encode() * 100)


def test_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert size_of(tmp_path) <= 50_000 * (1 + 4 / 32)
