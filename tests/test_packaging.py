"""A wheel holds the whole product under one name."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import erasure

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Folders of the tree, and where a wheel holds them.
PLACES = {"erasure": "erasure"} | {name: f"erasure/{name}" for name in ("pipelines", "eval", "configs", "demo")}


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files that git knows and that are here."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout")
    return [name for name in found.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from the tracked files, so that nothing of an earlier build gets in."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in tracked:
        if PurePosixPath(name).parts[0] in (*PLACES, "pyproject.toml", "README.md", "LICENSE"):
            copy = folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    # Without isolation the build needs no network: setuptools is in the dev extra.
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "source")], check=True)
    (built,) = folder.glob("erasure-*.whl")
    return zipfile.ZipFile(built).namelist()


def test_the_only_top_level_name_is_erasure(wheel: list[str]) -> None:
    tops = {PurePosixPath(name).parts[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"erasure"}


def test_nothing_is_missing_from_the_wheel(wheel: list[str], tracked: list[str]) -> None:
    places = ((PurePosixPath(name), PLACES.get(PurePosixPath(name).parts[0])) for name in tracked)
    expected = {str(PurePosixPath(place, *name.parts[1:])) for name, place in places if place}
    missing = expected - set(wheel)
    assert not missing, f"add to packages or package-data in pyproject.toml: {sorted(missing)}"


def test_the_wheel_holds_no_tests_and_no_tools(wheel: list[str]) -> None:
    tools = {"erasure/tests", "erasure/benchmarks", "erasure/docs", "erasure/results"}
    found = [name for name in wheel if "tests" in PurePosixPath(name).parts or "/".join(name.split("/")[:2]) in tools]
    assert not found


def test_every_package_is_listed() -> None:
    # A folder of code that pyproject.toml does not list works from a checkout and is missing from a wheel.
    found = {
        str(PurePosixPath(place, *file.parent.relative_to(ROOT / folder).parts)).replace("/", ".")
        for folder, place in PLACES.items()
        for file in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_extra_can_be_named_in_an_error() -> None:
    assert {"eval", "app", "nudity", "xformers", "dev"} == set(PROJECT["project"]["optional-dependencies"])


def test_every_direct_dependency_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in lines if not line.startswith("#")}
    extras = PROJECT["project"]["optional-dependencies"]
    direct = [*PROJECT["project"]["dependencies"], *extras["eval"], *extras["app"], *extras["dev"]]
    names = {requirement.partition(">")[0].partition("[")[0].lower().replace("_", "-") for requirement in direct}
    assert names - {"erasure"} <= pins


def test_constraints_name_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wrong = [
        line for line in lines if not line.startswith("#") and (line.count("==") != 1 or "/" in line or "@" in line)
    ]
    assert not wrong


def test_the_wheel_has_the_command(wheel: list[str]) -> None:
    assert PROJECT["project"]["scripts"] == {"erasure": "erasure.cli.main:main"}
    assert "erasure/py.typed" in wheel


def public_modules() -> set[str]:
    """The modules that `erasure` exports from, and those that a page imports from."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    imports = [re.findall(r"^from (erasure\.[\w.]+) import", page.read_text(encoding="utf-8"), re.M) for page in pages]
    return {f"erasure{home}" for home in erasure._HOMES.values()}.union(*imports)


def test_public_modules_are_checked_strictly() -> None:
    strict = [pattern.removeprefix("build/types/") for pattern in PROJECT["tool"]["pyright"]["strict"]]
    for module in public_modules():
        place = module.replace(".", "/")
        tree = ROOT / place.removeprefix("erasure/") if place.split("/")[1] in PLACES else ROOT / place
        file = f"{place}/__init__.py" if tree.is_dir() else f"{place}.py"
        assert any(_covers(pattern, file) for pattern in strict), f"add build/types/{file} to strict in pyproject.toml"


def _covers(pattern: str, file: str) -> bool:
    """Return True if a pattern of pyright names a file, or a folder that it is in."""
    inner = re.escape(pattern).replace(r"\*\*/", "(.+/)?").replace(r"\*", "[^/]*")
    return re.fullmatch(f"{inner}(/.+)?", file) is not None
