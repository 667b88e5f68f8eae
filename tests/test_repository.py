"""The files of the repository itself: a folder that is copied out of it works."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.helpers.cli import ROOT


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name]


def test_no_tracked_file_is_a_symlink() -> None:
    """A link breaks in a copied folder, in a ZIP download, and on systems that check it out as text."""
    assert [str(path.relative_to(ROOT)) for path in tracked_files() if path.is_symlink()] == []


def test_scripts_for_users_are_executable() -> None:
    scripts = ("install-openmmlab", "release-notes", "smoke-test", "system-deps", "take-screenshots")
    for name in ("examples/ci-retrain/retrain", *(f"scripts/{script}" for script in scripts)):
        assert (ROOT / name).stat().st_mode & 0o111, name


def test_installer_in_scripts_passes_its_arguments_on() -> None:
    command = [str(ROOT / "scripts" / "install-openmmlab"), "--pyhton", "x"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, "unknown argument '--pyhton'" in run.stderr) == (2, True)


def test_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    command = str(ROOT / "scripts" / "release-notes")
    notes = subprocess.run([command, "Unreleased"], capture_output=True, text=True, check=True).stdout
    assert notes.lstrip().startswith("### Added")
    assert notes.strip() in (ROOT / "CHANGELOG.md").read_text("utf-8")
    missing = subprocess.run([command, "9.9.9"], capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stderr) == (1, "CHANGELOG.md has no section for 9.9.9\n")


def test_readme_of_package_has_no_relative_links() -> None:
    """PyPI shows the text without the files that these links lead to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    [fragment] = hook["fragments"]
    text = (ROOT / fragment["path"]).read_text("utf-8")
    links = re.findall(r"\]\((.*?)\)", text)
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    assert re.findall(r"\]\((.*?)\)", text) == [link for link in links if "://" in link]
    assert "`image-classifier`, transfer learning" in text
