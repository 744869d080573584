"""What a machine without package registries needs to prove, measure and train, in one folder of at most 60 MiB.

    python -m fr_training.pack -o pack

writes `wheels/`, `cache.tar.xz` (unpacked it is a `$FR_DEPLOY_CACHE`; xz saves a sixth) and `pack.json`: the wheels and
what is in the archive, with sizes and digests. The list is committed as `training/pack.json`; packing again gives the
same.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from fr_deploy.errors import ResourceError
from fr_training.faces import generator_file
from fr_training.perceptual import perceptual_file
from fr_training.rounded import require_exact, save_rounded

LIST = "pack.json"
ARCHIVE = "cache.tar.xz"
LIMIT = 60 * 2**20
"""Bytes of the whole folder."""
PYTHON = "3.12"
# What that machine lacks of our dependencies; torch, Triton and the rest are there. xformers is a peer of the kernel
# benchmark alone.
WHEELS = {
    "diffusers==0.42.1": "9154faa704ce00e0b77f568e0d64786064368528aab5fc14eeea92f87d788014",
    "simplejpeg==1.9.0": "5be1c8932f43f99b6cc52f8ac4c28e3ac19a1a830351efdb159715fd683e2053",
    "xformers==0.0.35": "ccc73c7db9890224ab05f5fb60e2034f9e6c8672a10be0cf00e95cbbae3eda7c",
}
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Half of HED's bytes are in its fifth block, a third in its fourth. As int8 with a factor for each channel they change
# lpips_hed by less than 1 % (tests/test_training_pack.py); left out, it would be another distance.
_BYTEWISE = tuple(f"conv{block}_{i}.weight" for block in (4, 5) for i in (1, 2, 3))


def pack(out: Path) -> dict[str, dict[str, int | str]]:
    """Fill the folder; returns the list: bytes and SHA-256 by name.

    Raises:
        ResourceError: a wheel has another digest, or everything together is over the limit.
        UsageError: the cache holds rounded weights, from another pack.
    """
    fetch_wheels(out / "wheels")
    with tempfile.TemporaryDirectory(dir=out) as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        _round(cache)
        listed = _listed(out / "wheels") | _listed(cache)
        with tarfile.open(out / ARCHIVE, "w:xz") as tar:
            tar.add(cache, "cache")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if total > LIMIT:
        raise ResourceError(
            f"{out} has {total} bytes, allowed are {LIMIT}; remove what is not in {LIST}"
        )
    (out / LIST).write_text(json.dumps(listed, indent=1) + "\n")
    return listed


def _round(cache: Path) -> None:
    for path, bytewise in ((generator_file(), ()), (perceptual_file(), _BYTEWISE)):
        require_exact(path)
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        save_rounded(load_file(path), cache / path.name, bytewise=bytewise, metadata=metadata)


def _listed(folder: Path) -> dict[str, dict[str, int | str]]:
    found: dict[str, dict[str, int | str]] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        found[f"{folder.name}/{path.name}"] = {"bytes": len(data), "sha256": digest}
    return found


def fetch_wheels(folder: Path) -> None:
    """Download the wheels for `PYTHON` on Linux, x86-64, without their dependencies.

    Raises:
        ResourceError: pip found none, or one has another digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for requirement, digest in WHEELS.items():
        name, _, version = requirement.partition("==")
        if not list(folder.glob(f"{name}-{version}-*.whl")):
            _download(requirement, folder)
        (path,) = folder.glob(f"{name}-{version}-*.whl")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != digest:
            raise ResourceError(
                f"{path}: sha256 is {found}, expected {digest}; delete it and run again"
            )


def _download(requirement: str, folder: Path) -> None:
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    target = ["--python-version", PYTHON, "--implementation", "cp", *platforms]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    done = subprocess.run([*command, *target, "--dest", str(folder), requirement], check=False)
    if done.returncode:
        raise ResourceError(f"pip found no {requirement} for Python {PYTHON} on Linux, x86-64")


def main() -> None:
    """Pack and print the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("pack"))
    given = parser.parse_args()
    listed = pack(given.output)
    for name, what in listed.items():
        print(f"{what['bytes']:>11,}  {name}")
    archive = (given.output / ARCHIVE).stat().st_size
    wheels = sum(int(what["bytes"]) for name, what in listed.items() if name.startswith("wheels/"))
    print(f"{archive:>11,}  {ARCHIVE}")
    print(f"{wheels + archive:>11,}  wheels and archive together; allowed are {LIMIT:,}")


if __name__ == "__main__":
    main()
