"""Signatures of manifests: ed25519 (RFC 8032), through the package `cryptography` (extra `sign`).

A manifest holds the digest of every file, so who signs it signs the directory.
"""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fr_deploy.atomic import atomic_write
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.manifest import FILE, SIGNATURE
from fr_deploy.strict_json import of_json, to_json

INSTALL = "pip install 'fr-deploy[sign]'"


@dataclass(frozen=True)
class Signature:
    """DIR/manifest.json.sig, of the manifest's bytes."""

    key: str
    """The public key, 32 bytes in hexadecimal. Says who claims to have signed, not whom to trust."""
    signature: str
    """64 bytes in hexadecimal."""


def make_keys(private: Path) -> Path:
    """Write a new private key, readable by its owner alone, and beside it the public key, both PEM.

    Args:
        private: the private key's file; must not exist. The public one has its name and `.pub`.

    Returns:
        The public key's file, to be given to those who run the directories.

    Raises:
        UsageError: a file is there already.
        ResourceError: `cryptography` is missing.
    """
    public = private.with_name(private.name + ".pub")
    keys, forms = _ed25519(), _import("hazmat.primitives.serialization")
    if taken := [path for path in (private, public) if path.exists()]:
        raise UsageError(f"{taken[0]} exists; choose another name, or remove it")
    key = keys.Ed25519PrivateKey.generate()
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    with os.fdopen(os.open(private, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(secret)
    form = forms.PublicFormat.SubjectPublicKeyInfo
    with atomic_write(public) as file:
        file.write(key.public_key().public_bytes(forms.Encoding.PEM, form))
    return public


def sign(folder: Path, private: Path) -> Path:
    """Write DIR/manifest.json.sig; an older one is replaced.

    Args:
        folder: a finished export.
        private: file of the private key, as `make_keys` writes it.

    Raises:
        ModelError: there is no manifest, or the file is no such key.
        ResourceError: `cryptography` is missing.
    """
    _ed25519()
    try:
        data = (folder / FILE).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder / FILE} cannot be signed: {error.strerror}") from error
    key = _key(private, "load_pem_private_key", "Ed25519PrivateKey", None)
    made = Signature(key.public_key().public_bytes_raw().hex(), key.sign(data).hex())
    with atomic_write(folder / SIGNATURE) as file:
        file.write(to_json(made))
    return folder / SIGNATURE


def check_signature(folder: Path, data: bytes, trusted: Path | None) -> str | None:
    """Refuse a manifest whose signature does not fit, or that another key signed than the trusted one.

    Args:
        folder: holds the signature, if there is one.
        data: the manifest's bytes.
        trusted: file of the public key that must have signed; None: whoever signed, or nobody.

    Returns:
        The public key that signed, in hexadecimal; None where there is no signature and none is asked for.

    Raises:
        ModelError: no signature though a key is given, a damaged or a wrong one, another key.
        ResourceError: there is a signature, and `cryptography` is missing.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        if trusted is None:
            return None
        raise ModelError(
            f"{folder} is not signed, and the key in {trusted} is asked for; its owner signs it with: "
            "fr-deploy sign DIR --key FILE"
        )
    keys = _ed25519()
    wanted = None if trusted is None else _key(trusted, "load_pem_public_key", "Ed25519PublicKey")
    found = of_json(Signature, path.read_bytes()[:4096], str(path))
    _require_valid(keys, found, data, path)
    if wanted is not None and wanted.public_bytes_raw().hex() != found.key:
        raise ModelError(
            f"{path}: key is {found.key}, and {trusted} holds {wanted.public_bytes_raw().hex()}: someone else signed "
            "this directory; get it, or the key, anew from where you trust it"
        )
    return found.key


def _require_valid(keys: Any, found: Signature, data: bytes, path: Path) -> None:
    invalid = _import("exceptions").InvalidSignature
    try:
        key = keys.Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.key))
        key.verify(bytes.fromhex(found.signature), data)
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}; copy the directory again") from error
    except invalid as error:
        raise ModelError(
            f"{path} does not fit {FILE}: the manifest was changed after it was signed. Copy the directory again, or, "
            "if you changed it, sign it anew: fr-deploy sign DIR --key FILE"
        ) from error


def _key(path: Path, load: str, kind: str, *more: Any) -> Any:
    unsupported = _import("exceptions").UnsupportedAlgorithm
    read = getattr(_import("hazmat.primitives.serialization"), load)
    try:
        key = read(path.read_bytes(), *more)
    except (OSError, ValueError, TypeError, unsupported) as error:
        raise ModelError(f"{path} is no key file: {error}; expected PEM, ed25519") from error
    if not isinstance(key, getattr(_ed25519(), kind)):
        raise ModelError(f"{path} holds {type(key).__name__}; expected {kind}")
    return key


def _ed25519() -> Any:
    return _import("hazmat.primitives.asymmetric.ed25519")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(f"cryptography.{name}")
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"signatures need the package cryptography, which is not installed: {INSTALL}"
        ) from error
