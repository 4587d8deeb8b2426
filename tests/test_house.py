"""The house itself: what is public, what an import costs, what the README promises, what the wheel holds."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import compress
import compress.command
import latency
import latency.command
import network
import network.__main__
import search
import search.command
import search.importance.__main__
import search.service.command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MEASURED = (ROOT / "docs" / "measurements.md").read_text()
PARSERS = {
    "profile-device": latency.command.parser(),
    "search": search.command.parser(),
    "apply-plan": compress.command.parser(),
    "narrowgauge": search.service.command.parser(),
}


def written(text: str) -> set[str]:
    """Long names of options in a text, each whole: --import is not met by --importance."""
    return set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", text))


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Long names of a parser's options, those of its commands included."""
    own = {max(action.option_strings, key=len) for action in parser._actions if action.option_strings}
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return own.union(*(options(each) for action in commands for each in action.choices.values())) - {"--help"}


@pytest.mark.parametrize("package", [network, latency, search, compress])
def test_every_public_name_can_be_had(package):
    assert package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_the_contract_of_the_packages_is_there():
    assert {"trace", "narrow", "mask"} <= set(network.__all__)
    assert {"LatencyTable", "Measurement", "Device"} <= set(latency.__all__)
    assert {"search", "Plan"} <= set(search.__all__)
    assert {"apply_plan", "load", "CompressedModel"} <= set(compress.__all__)


@pytest.mark.parametrize(
    "module",
    ["network.types", "network.errors", "search.solve", "search.space", "search.plan", "search", "latency.table"],
)
def test_a_plan_can_be_searched_without_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("command", PARSERS)
def test_every_option_stands_in_the_readme(command):
    assert options(PARSERS[command]) - written(README) == set()


def test_every_option_in_the_readme_exists():
    parsers = (*PARSERS.values(), search.importance.__main__.parser(), network.__main__.parser())
    known = set().union(*(options(parser) for parser in parsers)) | {"--help"}
    assert written(README) <= known | {"--nproc-per-node"}  # torchrun's


@pytest.mark.parametrize("command", ["profile-device", "search", "apply-plan"])
def test_every_option_in_a_commands_section_of_the_readme_is_its_own(command: str):
    (section,) = re.findall(rf"^### `{command}\b.*?(?=^##)", README, re.M | re.S)
    others = "|".join(PARSERS.keys() - {command})
    own = written(re.sub(rf"`(?:{others}|python)\b[^`]*`", "", section))
    assert own
    assert own <= options(PARSERS[command])


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ ((?:profile-device|search|apply-plan|narrowgauge)\b.*?)(?:\s+#.*)?$", README, re.M)
)
def test_every_command_in_the_readme_parses(line):
    command, *words = shlex.split(line)
    PARSERS[command].parse_args(words)


def test_the_readme_gives_weights_to_the_search_where_it_gives_them_to_its_plan():
    """A plan is of its weights, and `apply-plan` refuses others."""
    lines = re.findall(r"^\$ (search|apply-plan)\b(.*)", README, re.M)
    applied = [at for at, (command, _) in enumerate(lines) if command == "apply-plan"]
    assert applied
    for at in applied:
        searched = next(words for command, words in reversed(lines[:at]) if command == "search")
        assert ("--weights" in searched) == ("--weights" in lines[at][1]), lines[at]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bpython -m\s([\w.]*\w)", README + MEASURED))))
def test_every_module_that_the_documents_run_is_there_and_has_a_main(name: str):
    spec = importlib.util.find_spec(name)
    assert spec, name
    if spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{name}.__main__")
    assert spec, name
    assert spec.origin
    source = Path(spec.origin).read_text()
    assert re.search(r"^def main\(", source, re.M)
    assert re.search(r"^    (raise SystemExit|sys\.exit)\((run\()?main", source, re.M)


def test_make_clean_keeps_what_took_days_to_make():
    shown = subprocess.run(["make", "--dry-run", "clean"], check=True, capture_output=True, text=True, cwd=ROOT)
    removed = shown.stdout.split()
    assert ".venv" in removed
    assert {"bench", "demo"}.isdisjoint(removed)


def test_the_readme_names_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^\$ make (\w+)", README, re.M)) <= targets


def test_the_wheel_works_from_another_folder(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("narrowgauge-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"network", "latency", "search", "compress", "profiles"}
    assert any(name.endswith("page.html") for name in names)
    page = {f"search/service/page/{name}" for name in ("index.html", "main.js", "style.css", "icon.svg")}
    assert page | {"search/service/migrations/script.py.mako"} <= set(names)
    shipped = {path for ending in ("md", "json", "parquet") for path in (ROOT / "profiles").rglob(f"*.{ending}")}
    assert {path.relative_to(ROOT).as_posix() for path in shipped} <= set(names)
    code = "import network, latency, search, compress\n"
    code += "for package in (network, latency, search, compress): [getattr(package, n) for n in package.__all__]\n"
    code += "print(network.__file__)"
    shown = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{code}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert str(tmp_path) in shown.stdout
