"""The CUDA C++ sources of the repository's `csrc/`, which the wheel carries inside this package."""

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
    return (_folder() / f"{name}.cu").read_text(encoding="utf-8")


def cuda_source_names() -> list[str]:
    """Names that `cuda_source` takes, sorted.

    Raises:
        FileNotFoundError: the installation lacks the sources.
    """
    return sorted(path.stem for path in _folder().glob("*.cu"))


def _folder() -> Path:
    for folder in _FOLDERS:
        if any(folder.glob("*.cu")):
            return folder
    raise FileNotFoundError(
        f"no CUDA sources in {' or '.join(map(str, _FOLDERS))}; "
        "mend the installation with: pip install --force-reinstall --no-deps fr-deploy"
    )
