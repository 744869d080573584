"""The command starts at once, and its help is what is committed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fr_deploy import __version__
from fr_deploy.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
HELP = ROOT / "docs" / "help"
LIMIT_S = 0.3


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fr_deploy", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_starts_in_under_300_ms(option):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert run(option).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < LIMIT_S, f"best of 5 was {min(times):.2f} s"


def test_version():
    assert run("-v").stdout == f"fr-deploy {__version__}\n"


def test_help_imports_nothing_heavy():
    script = (
        "import sys, fr_deploy.cli.restore; from click.testing import CliRunner;"
        "from fr_deploy.cli import main; CliRunner().invoke(main, ['--help']);"
        "CliRunner().invoke(main, ['restore', '--help']);"
        "print(sorted({'torch', 'numpy', 'cv2', 'PIL', 'rich', 'diffusers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def help_texts():
    """From a fresh process: click keeps a command's help option as its first caller made it."""
    script = "import json; from fr_deploy.cli import help_texts; print(json.dumps(help_texts()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["fr-deploy", *COMMANDS])
def test_help_is_what_is_committed(name, help_texts):
    committed = (HELP / f"{name}.txt").read_text()
    assert help_texts[name] == committed, "run `make help-texts` and look at the difference"


def test_no_help_file_is_left_over():
    assert {path.stem for path in HELP.glob("*.txt")} == {"fr-deploy", *COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_summaries_are_those_of_the_commands(name):
    command = main.get_command(None, name)
    assert command.get_short_help_str(limit=100) == COMMANDS[name].summary


def test_an_unknown_command_is_usage():
    done = run("restroe")
    assert done.returncode == 2
    assert "No such command 'restroe'" in done.stderr


def invoke_failing(monkeypatch, error, *arguments):
    import click

    @click.command()
    def broken():
        raise error

    monkeypatch.setattr("fr_deploy.cli.restore.restore", broken)
    return CliRunner().invoke(main, [*arguments, "restore"])


def test_expected_errors_have_a_code_and_no_traceback(monkeypatch):
    from fr_deploy.errors import ModelError

    done = invoke_failing(monkeypatch, ModelError("no bundle 'x'"))
    assert (done.exit_code, done.stderr) == (5, "fr-deploy: no bundle 'x'\n")


def test_an_interrupt_is_130(monkeypatch):
    assert invoke_failing(monkeypatch, KeyboardInterrupt()).exit_code == 130


def test_a_bug_points_to_debug_and_debug_shows_the_place(monkeypatch):
    done = invoke_failing(monkeypatch, ZeroDivisionError("oops"))
    assert done.exit_code == 1
    assert "Traceback" not in done.stderr
    assert "unexpected ZeroDivisionError: oops\n  fr-deploy --debug" in done.stderr
    done = invoke_failing(monkeypatch, ZeroDivisionError("oops"), "--debug")
    assert "Traceback" in done.stderr
    monkeypatch.setenv("FR_DEPLOY_DEBUG", "1")
    assert "Traceback" in invoke_failing(monkeypatch, ZeroDivisionError("oops")).stderr


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard.compat", '"fr-deploy[train]"'), ("onnxruntime", "onnxruntime")],
)
def test_a_missing_package_prints_the_pip_line(monkeypatch, name, package):
    done = invoke_failing(monkeypatch, ModuleNotFoundError(f"No module named {name}", name=name))
    assert done.exit_code == 6
    assert done.stderr.endswith(f"pip install {package}\n")
