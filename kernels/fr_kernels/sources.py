"""The sources of the repository's `csrc/`, C++ and CUDA C++, which the wheel carries inside fr_kernels; the commit."""

import subprocess
from pathlib import Path

_HERE = Path(__file__).resolve()
# In a wheel, and in a checkout.
_FOLDERS = (_HERE.parent / "csrc", _HERE.parents[2] / "csrc")


def cuda_source(name: str) -> str:
    """The text of one CUDA source, ready for NVRTC: it includes nothing.

    Args:
        name: without the suffix, such as "nearest_code".

    Raises:
        ValueError: there is no such source; the message lists those that exist.
    """
    if name not in (known := cuda_source_names()):
        raise ValueError(f"no CUDA source {name!r}; there are: {', '.join(known)}")
    return (source_folder() / f"{name}.cu").read_text(encoding="utf-8")


def cuda_source_names() -> list[str]:
    """Names that `cuda_source` takes, sorted.

    Raises:
        FileNotFoundError: the installation lacks the sources.
    """
    return sorted(path.stem for path in source_folder().glob("*.cu"))


def source_folder() -> Path:
    """Where the sources lie.

    Raises:
        FileNotFoundError: the installation lacks them.
    """
    for folder in _FOLDERS:
        if any(folder.glob("*.cu")):
            return folder
    raise FileNotFoundError(
        f"no sources in {' or '.join(map(str, _FOLDERS))}; "
        "mend the installation with: pip install --force-reinstall --no-deps fr-deploy"
    )


def source_state(folder: Path, *ignored: str) -> tuple[str, bool]:
    """The commit of a checkout, and whether tracked files differ from it; ("", False) outside a git checkout.

    Args:
        folder: any of the checkout.
        ignored: pathspecs of files that may differ, such as ":!benchmarks/results".
    """
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "", False
    root = _git(folder, "rev-parse", "--show-toplevel") or "."
    return commit, bool(_git(Path(root), "status", "--porcelain", "-uno", *ignored))


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
