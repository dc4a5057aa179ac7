"""Compare a source archive and a wheel with the source: everything of the package is in both, and nothing else is.

usage: python .ci/archives.py SOURCE ARCHIVE.tar.gz WHEEL.whl
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "rlhf_lightning"
BESIDE = ("callbacks", "configs")
"""Folders at the top of the repository that the wheel installs below the package."""
ALSO_IN_THE_ARCHIVE = {
    "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py",
}  # fmt: skip


def package_files(source: Path) -> set[str]:
    """Return the files of the package and of the folders beside it, relative to the source."""
    folders = [source / name for name in (PACKAGE, *BESIDE)]
    return {str(path.relative_to(source)) for folder in folders for path in folder.rglob("*") if path.is_file()}


def installed_name(file: str) -> str:
    """Return where the wheel installs a file."""
    return f"{PACKAGE}/{file}" if file.split("/")[0] in BESIDE else file


def archive_files(path: Path) -> set[str]:
    """Return the files of the source archive without its top folder and without metadata."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    return {name for name in names if ".egg-info/" not in name}


def wheel_files(path: Path) -> set[str]:
    """Return the files of the wheel without metadata."""
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}


def differences(name: str, found: set[str], expected: set[str]) -> list[str]:
    """Return one line per file that is missing or too much."""
    missing = [f"{name} lacks {file}" for file in sorted(expected - found)]
    return missing + [f"{name} has {file}, which is not of the package" for file in sorted(found - expected)]


def main() -> int:
    """Print the differences and return their number as the exit status (at most 1)."""
    source, archive, wheel = (Path(word) for word in sys.argv[1:])
    expected = package_files(source)
    assert len(expected) > 50, f"{source} has only {len(expected)} files of the package"
    faults = differences(archive.name, archive_files(archive), expected | ALSO_IN_THE_ARCHIVE)
    faults += differences(wheel.name, wheel_files(wheel), {installed_name(file) for file in expected})
    print("\n".join(faults) or f"{archive.name} and {wheel.name} have the {len(expected)} files of the package")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
