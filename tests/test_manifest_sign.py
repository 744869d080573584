"""Signatures: a directory is run if the trusted key signed it as it is, and not otherwise."""

import importlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exported_toy import changed
from fr_deploy.cli import main
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.manifest import FILE, SIGNATURE
from fr_deploy.manifest_check import check
from fr_deploy.manifest_sign import INSTALL, check_signature, make_keys, sign
from manifest_cases import HERE, directory

ed25519 = pytest.importorskip(
    "cryptography.hazmat.primitives.asymmetric.ed25519", reason=f"{INSTALL}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory(tmp_path / "engines")
    return tmp_path / "engines"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_keys(tmp_path / "mine.key")
    return tmp_path / "mine.key"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("mine.key.pub")


def refused(folder: Path, trusted: Path | None) -> str:
    with pytest.raises(ModelError) as caught:
        check(folder, HERE, trusted=trusted)
    return str(caught.value)


def test_what_the_trusted_key_signed_passes(folder: Path, key: Path, public: Path) -> None:
    assert sign(folder, key) == folder / SIGNATURE
    assert check(folder, HERE, trusted=public) == check(folder, HERE)
    data = (folder / FILE).read_bytes()
    (hexadecimal,) = {check_signature(folder, data, t) for t in (public, None)}
    assert hexadecimal is not None
    # The signature is plain ed25519 of the file's bytes: others verify it without this program.
    signature = json.loads((folder / SIGNATURE).read_text())["signature"]
    theirs = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(hexadecimal))
    theirs.verify(bytes.fromhex(signature), data)


def test_what_is_not_signed(folder: Path, public: Path) -> None:
    assert check(folder, HERE)
    assert f"{folder} is not signed, and the key in {public} is asked for" in refused(
        folder, public
    )


@pytest.mark.parametrize("asked", [True, False])
def test_a_manifest_changed_after_it_was_signed(
    asked: bool, folder: Path, key: Path, public: Path
) -> None:
    signature = sign(folder, key).read_bytes()
    changed(folder, preset="lafr-mini")
    (folder / SIGNATURE).write_bytes(signature)
    message = refused(folder, public if asked else None)
    assert "manifest.json.sig does not fit manifest.json: the manifest was changed after" in message


def test_what_someone_else_signed(folder: Path, public: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "other.key")
    sign(folder, tmp_path / "other.key")
    assert check(folder, HERE), "anyone may sign where nobody in particular is trusted"
    other = json.loads((folder / SIGNATURE).read_text())["key"]
    message = refused(folder, public)
    assert f"key is {other}, and {public} holds " in message
    assert "someone else signed this directory" in message


def test_another_key_written_into_the_signature(folder: Path, key: Path, tmp_path: Path) -> None:
    trusted = make_keys(tmp_path / "trusted.key")
    found = json.loads(sign(folder, key).read_text())
    sign(folder, tmp_path / "trusted.key")
    name = json.loads((folder / SIGNATURE).read_text())["key"]
    (folder / SIGNATURE).write_text(json.dumps(found | {"key": name}))
    assert "does not fit manifest.json" in refused(folder, trusted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "ab"}, "is damaged: An Ed25519 public key is 32 bytes long; copy"),
        ({"key": "xy"}, "is damaged: non-hexadecimal number found"),
        ({"signature": "xy"}, "is damaged: non-hexadecimal number found"),
        ({"signature": "ab"}, "does not fit manifest.json"),
        ({"signature": 1}, "signature is 1; expected str"),
        ({"more": 1}, "has the field more, which this version does not know"),
    ],
)
def test_a_damaged_signature(change: Any, message: str, folder: Path, key: Path) -> None:
    found = json.loads(sign(folder, key).read_text())
    (folder / SIGNATURE).write_text(json.dumps(found | change))
    assert message in refused(folder, None)


def test_keys(key: Path, public: Path, folder: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    with pytest.raises(UsageError, match=r"mine\.key exists; choose another name"):
        make_keys(key)
    key.unlink()
    with pytest.raises(UsageError, match=r"mine\.key\.pub exists"):
        make_keys(key)
    with pytest.raises(ModelError, match=r"mine\.key is no key file: .*expected PEM, ed25519"):
        sign(folder, key)
    with pytest.raises(ModelError, match=r"mine\.key\.pub is no key file"):
        sign(folder, public)
    with pytest.raises(ModelError, match="cannot be signed: No such file"):
        sign(tmp_path, public)


def test_a_key_of_another_kind(folder: Path, tmp_path: Path) -> None:
    ec = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ec")
    forms = importlib.import_module("cryptography.hazmat.primitives.serialization")
    made = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    )
    (tmp_path / "ec.key").write_bytes(made)
    with pytest.raises(ModelError, match=r"ec\.key holds \w+; expected Ed25519PrivateKey"):
        sign(folder, tmp_path / "ec.key")


def test_the_command(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "new.key"
    done = CliRunner().invoke(main, ["sign", str(folder), "--key", str(key), "--make-key"])
    assert (done.exit_code, len(done.output.splitlines())) == (0, 3)
    assert check(folder, HERE, trusted=tmp_path / "new.key.pub")
    assert CliRunner().invoke(main, ["sign", str(folder), "--key", str(key)]).exit_code == 0
    again = CliRunner().invoke(main, ["sign", str(folder), "--key", str(key), "--make-key"])
    assert again.exit_code == 2
    nothing = CliRunner().invoke(main, ["sign", str(tmp_path), "--key", str(key)])
    assert nothing.exit_code == 5


def test_without_the_package(
    folder: Path, key: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(folder, key)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for call in (
        lambda: check(folder, HERE),
        lambda: check(folder, HERE, trusted=public),
        lambda: sign(folder, key),
        lambda: make_keys(folder / "k"),
    ):
        with pytest.raises(ResourceError, match=r"not installed: pip install 'fr-deploy\[sign\]'"):
            call()
    (folder / SIGNATURE).unlink()
    assert check(folder, HERE), "what is not signed needs no package"
