"""Objects of s3:// and gs://, by fsspec and the packages of the extra `cloud`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fr_deploy.errors import ResourceError

SCHEMES = ("s3", "gs")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}


@dataclass(frozen=True)
class StoredObject:
    """One object below a prefix."""

    url: str
    relative: str
    """Its key behind the prefix."""
    size: int | None
    """Bytes; None: the store does not say."""


def is_cloud(url: str) -> bool:
    """Whether a URL is of one of these stores."""
    return url.partition("://")[0].lower() in SCHEMES


def list_objects(url: str) -> Iterator[StoredObject]:
    """List what lies below a prefix, folder by folder in the order of their names; one object stands for itself.

    The names of one folder at a time are held in memory.

    Args:
        url: such as `s3://bucket/photos`.

    Raises:
        ResourceError: a package or credentials are missing.
        OSError: as the store has it; FileNotFoundError where there is nothing.
    """
    scheme, root = _split(url)
    try:
        yield from _objects(_system(scheme), scheme, root)
    except (OSError, ResourceError):
        raise
    except Exception as error:  # of the packages below: no credentials, a token that ended
        raise ResourceError(
            f"cannot list {url}: {type(error).__name__}: {error}; see that its credentials are set up here"
        ) from error


def read_object(url: str, max_bytes: int) -> bytes:
    """Read an object, but no more than one byte above `max_bytes`.

    Raises:
        ResourceError: a package is missing.
        OSError: as the store has it; what is none (no credentials) is made one.
    """
    scheme, key = _split(url)
    try:
        return bytes(_system(scheme).cat_file(key, start=0, end=max_bytes + 1))
    except (OSError, ResourceError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _objects(system: Any, scheme: str, root: str) -> Iterator[StoredObject]:
    about = system.info(root)
    if about["type"] != "directory":
        yield StoredObject(f"{scheme}://{root}", root.rsplit("/", 1)[-1], about.get("size"))
        return
    folders = [root]
    while folders:
        folder = folders.pop()
        found = {str(entry["name"]).rstrip("/"): entry for entry in system.ls(folder, detail=True)}
        found.pop(folder, None)  # a store may keep an empty object in place of a folder
        below = [name for name in found if name.startswith(f"{folder}/")]
        folders += sorted((n for n in below if found[n]["type"] == "directory"), reverse=True)
        for name in sorted(n for n in below if found[n]["type"] != "directory"):
            relative = name[len(root) + 1 :]
            yield StoredObject(f"{scheme}://{name}", relative, found[name].get("size"))


def _split(url: str) -> tuple[str, str]:
    scheme, _, key = url.partition("://")
    return scheme.lower(), key.strip("/")


@lru_cache
def _system(scheme: str) -> Any:
    try:
        import fsspec

        # A listing that was kept would hold every name of a bucket, and miss what came later.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise ResourceError(
            f"{scheme}:// needs the package {_PACKAGES[scheme]} ({error}); "
            "install it with: pip install 'fr-deploy[cloud]'"
        ) from error
