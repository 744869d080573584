"""Tar and zip files as tests write them, and what a run finds in them."""

import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.item import Item
from fr_deploy.batch.listing import list_items
from fr_deploy.batch.names import Notes
from fr_deploy.errors import ImageError
from fr_deploy.settings import Limits


def tar_of(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], **options: int) -> Path:
    with tarfile.open(path, "w", format=options.get("format", tarfile.PAX_FORMAT)) as tar:
        for info, data in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def zip_of(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes], packed: bool = True) -> Path:
    way = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", way) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members:
            archive.writestr(name, data, compress_type=way)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def listed(path: Path) -> tuple[list[Item], Notes]:
    listing = list_items([str(path)])
    return list(listing), listing.notes


def refused(notes: Notes) -> list[tuple[str, str]]:
    return [(os.path.basename(r.name), r.reason) for r in notes.refusals]


def reason(item: Item, limits: Limits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        Fetcher(limits).fetch(item)
    return caught.value.reason
