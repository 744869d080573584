"""The house rules that a reader cannot check by eye: floors, names, sizes, and what the README promises."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("csrc", "kernels", "export", "training", "benchmarks")
# What each package may import of ours.
FLOORS = {
    "fr_kernels": {"fr_kernels"},
    "fr_deploy": {"fr_deploy", "fr_kernels"},
    "fr_export": {"fr_export", "fr_deploy", "fr_kernels"},
    "fr_training": {"fr_training", "fr_deploy", "fr_kernels"},
    "fr_bench": {"fr_bench", "fr_export", "fr_training", "fr_deploy", "fr_kernels"},
}
FILE_LINES = 300
FUNCTION_LINES = 40
KERNEL_LINES = 80
MACHINE_PATH = re.compile(r"(?<![\w./~<}-])/(?:work|root|home|tmp|opt)(?:/|\b)")
REGISTRY_HOSTS = (
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "registry.npmjs" + ".org",
    "deb.debian" + ".org",
)


def _project() -> dict[str, dict[str, dict[str, object]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _packages() -> dict[str, Path]:
    setuptools = _project()["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    assert isinstance(folders, dict)
    tops = {name: ROOT / folders.get(name, name) for name in FLOORS}
    assert all(path.is_dir() for path in tops.values())
    return tops


PACKAGES = _packages()
SOURCES = sorted(path for top in PACKAGES.values() for path in top.rglob("*.py"))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _owner(path: Path) -> str:
    return next(name for name, top in PACKAGES.items() if path.is_relative_to(top))


@pytest.mark.parametrize("room", [*ROOMS, "tests"])
def test_a_room_is_not_a_package(room: str) -> None:
    assert (ROOT / room).is_dir()
    assert not (ROOT / room / "__init__.py").exists()


def test_the_installation_claims_no_name_of_others(tmp_path: Path) -> None:
    """`kernels` belongs to Hugging Face: diffusers imports it, so ours must not answer to it."""
    code = (
        "import importlib.util as u, sys\n"
        "for name in sys.argv[1:]:\n"
        "    s = u.find_spec(name)\n"
        "    print(name, *(list(s.submodule_search_locations or ()) + [s.origin] if s else ()), sep='|')\n"
    )
    names = [*ROOMS, "tests", "fr_deploy", "fr_kernels"]
    command = [sys.executable, "-I", "-c", code, *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    places = dict(line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    ours = {name for name, found in places.items() if str(ROOT) in found}
    assert ours == {"fr_deploy", "fr_kernels"}, "expected an installation made by: pip install -e ."


def test_the_list_of_packages_is_complete() -> None:
    found = {"fr_kernels.csrc"}
    for name, top in PACKAGES.items():
        folders = {path.parent.relative_to(top) for path in top.rglob("__init__.py")}
        found |= {".".join((name, *folder.parts)) for folder in folders}
        orphans = {_name(path.parent) for path in top.rglob("*.py")} - {
            _name(top / folder) for folder in folders
        }
        assert not orphans, f"without __init__.py: {orphans}"
    listed = _project()["tool"]["setuptools"]["packages"]
    assert sorted(found) == listed


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno} imports by a relative name"
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_arrows_point_down(path: Path) -> None:
    tops = {name.partition(".")[0] for name in _imports(path)}
    assert {top for top in tops if top.startswith("fr_")} <= FLOORS[_owner(path)]
    if _owner(path) == "fr_kernels":
        assert tops - set(sys.stdlib_module_names) <= {"torch", "triton", "fr_kernels"}


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES
    limit = KERNEL_LINES if path.stem.startswith(("triton_", "cuda_")) else FUNCTION_LINES
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(_tree(path)):
        if isinstance(node, functions):
            assert _code_lines(node) <= limit, f"{node.name}, line {node.lineno}"


def _repository_texts() -> Iterator[tuple[str, str]]:
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    for name in sorted(set(filter(None, done.stdout.split("\0")))):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or weights


def test_no_text_names_a_machine_or_a_registry() -> None:
    found: list[str] = []
    for name, text in _repository_texts():
        for number, line in enumerate(text.splitlines(), 1):
            path = None if name.startswith("tests/") else MACHINE_PATH.search(line)
            if path or any(host in line for host in REGISTRY_HOSTS):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def _constant(node: ast.expr | None, module: ast.Module) -> str:
    """The text of a string literal, or of a module's constant."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(node, ast.Name) and any(
            isinstance(target, ast.Name) and target.id == node.id for target in targets
        ):
            assert isinstance(statement, ast.Assign)
            return _constant(statement.value, module)
    raise AssertionError(
        f"line {getattr(node, 'lineno', '?')}: the variable's name is not a literal"
    )


def _variables_read(path: Path) -> Iterator[str]:
    module = _tree(path)
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in ("os.environ.get", "os.getenv", "environ.get", "getenv"):
                yield _constant(node.args[0], module)
            yield from (_constant(k.value, module) for k in node.keywords if k.arg == "envvar")
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value) in ("os.environ", "environ"):
                yield _constant(node.slice, module)
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith("environ"):
            yield _constant(node.left, module)


def _section(title: str) -> str:
    parts = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(title + "\n"))


def test_the_readme_lists_every_environment_variable() -> None:
    read = {name for path in SOURCES for name in _variables_read(path)}
    listed = set(
        re.findall(r"^\| `([A-Z0-9_]+)` \|", _section("Environment variables"), re.MULTILINE)
    )
    assert read == listed


def _tree_paths() -> Iterator[str]:
    """Paths of the README's drawn tree; a line names one or more of one folder, with ` · ` between them."""
    parents: list[str] = []
    for line in _section("Tree").split("```")[1].splitlines()[2:]:
        drawn = re.match(r"[│├└─ ]*", line)
        depth = len(drawn[0]) // 4 if drawn else 0
        names = re.split(r"\s{2,}", line[depth * 4 :].strip())[0].split(" · ")
        del parents[depth - 1 :]
        yield from ("".join([*parents, name]) for name in names)
        parents.append(names[0])


def test_the_readme_tree_exists() -> None:
    paths = list(_tree_paths())
    assert len(paths) > 30
    missing = [
        p for p in paths if not ((ROOT / p).is_dir() if p.endswith("/") else (ROOT / p).is_file())
    ]
    assert not missing


def test_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named: set[str] = set()
    for document in ("README.md", "CONTRIBUTING.md", ".ci/run", "benchmarks/README.md"):
        named |= set(
            re.findall(r"(?:^|`)make ([a-z][a-z-]*)", (ROOT / document).read_text(), re.MULTILINE)
        )
    assert {"demo", "test", "test-all"} <= named <= targets


def test_the_oldest_triton_tested_is_the_oldest_allowed() -> None:
    dependencies = _project()["project"]["dependencies"]
    (allowed,) = (line for line in dependencies if line.startswith("triton"))
    oldest = re.search(r">=([\d.]+)", allowed)
    assert oldest
    assert f"triton=={oldest[1]}.0 " in (ROOT / "Makefile").read_text()


def test_tests_named_in_documents_exist() -> None:
    named = {
        name
        for document in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"))
        for name in re.findall(r"\btest_[a-z0-9_]+\.py", document.read_text())
    }
    assert "test_kernels_nearest_code_cuda.py" in named
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()
