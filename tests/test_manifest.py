"""The manifest: what is written is read again, and nothing else is."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fr_deploy.errors import ModelError
from fr_deploy.manifest import (
    FILE,
    MOST_BYTES,
    SIGNATURE,
    Manifest,
    manifest_bytes,
    parse_manifest,
    write_manifest,
)
from manifest_cases import directory


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    return json.loads(manifest_bytes(directory(tmp_path)))


def parse(data: Any) -> Manifest:
    return parse_manifest(json.dumps(data).encode(), "x.json")


@pytest.mark.parametrize("form", ["onnx", "tensorrt", "tensorrt-rtx"])
def test_what_is_written_is_read(form: str, tmp_path: Path) -> None:
    manifest = directory(tmp_path, form)
    assert parse_manifest((tmp_path / FILE).read_bytes()) == manifest
    assert manifest_bytes(manifest) == (tmp_path / FILE).read_bytes()
    assert manifest.component("unet").files[0].path.startswith("unet.")


def test_a_new_manifest_removes_the_signature_of_the_old(tmp_path: Path) -> None:
    manifest = directory(tmp_path)
    (tmp_path / SIGNATURE).write_bytes(b"of before")
    write_manifest(tmp_path, manifest)
    assert not (tmp_path / SIGNATURE).exists()


def test_every_field_must_be_there(data: dict[str, Any]) -> None:
    assert list(data) == [field.name for field in fields(Manifest)]
    for name in data:
        with pytest.raises(ModelError, match=f"^x.json has no field {name}$"):
            parse({key: value for key, value in data.items() if key != name})
    del data["components"][2]["files"][0]["sha256"]
    with pytest.raises(ModelError, match=r"has no field components\[2\]\.files\[0\]\.sha256"):
        parse(data)


WRONG: list[tuple[str, Any, str]] = [
    ("schema", 2, "schema is 2, and this version reads 1"),
    ("schema", "1", "schema is '1', and this version reads 1"),
    ("schema", True, "schema is True; expected int"),
    ("size", "64", "size is '64'; expected int"),
    ("size", 64.0, "size is 64.0; expected int"),
    ("size", None, "size is null; expected int"),
    ("family", "hdrface", "family is 'hdrface'; expected 'lafr'"),
    ("format", "engine", "format is 'engine'; expected 'onnx' or 'tensorrt' or 'tensorrt-rtx'"),
    ("format", [], "format is an array; expected 'onnx' or"),
    ("loras", {}, "loras is an object; expected an array"),
    ("loras", [{"name": "a", "sha256": "b", "scale": "1"}], r"loras\[0\]\.scale is '1'; expected float"),
    ("versions", {"torch": 2}, r"versions\.torch is 2; expected str"),
    ("versions", [], "versions is an array; expected an object"),
    ("gpu", [], "gpu is an array; expected an object"),
    ("gpu", None, "gpu is None, and the format is tensorrt-rtx"),
    ("verified", "onnx", "verified is 'onnx'; in the format tensorrt-rtx it is engine or onnx only"),
    ("verified", True, "verified is True; expected 'engine'"),
    ("batches", [], r"batches are \[\]; expected 1 <= least"),
    ("batches", [{"least": 4, "best": 2, "most": 8}], r"batches are \[\(4, 2, 8\)\]; expected 1"),
    ("components", [], "components are none; allowed are encoder, adapter, unet, decoder, or whole alone"),
    ("surprise", 1, "has the field surprise, which this version does not know"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_a_wrong_field_is_named(field: str, value: Any, message: str, data: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        parse(data | {field: value})
    assert "x.json" in str(caught.value)


def test_components_have_their_form(data: dict[str, Any]) -> None:
    unet = data["components"][2]
    for change, message in (
        ({"files": []}, "files of unet are none; expected one engine, no role twice"),
        ({"files": unet["files"] * 2}, "files of unet are engine, engine; expected one engine"),
        ({"inputs": unet["inputs"] * 2}, "unet has 2 inputs and 1 outputs; expected one input"),
        ({"outputs": []}, "unet has 1 inputs and 0 outputs"),
        (
            {"inputs": [unet["inputs"][0] | {"shape": [1, 4]}]},
            r"unet's latent is \[1, 4\]; expected",
        ),
        (
            {"inputs": [unet["inputs"][0] | {"shape": ["batch", "h"]}]},
            r"\['batch', 'h'\]; expected",
        ),
        ({"inputs": [unet["inputs"][0] | {"shape": ["batch", 0]}]}, r"\['batch', 0\]; expected"),
        (
            {"inputs": [unet["inputs"][0] | {"shape": ["batch", True]}]},
            "is True; expected int or str",
        ),
    ):
        components = [*data["components"][:2], unet | change, data["components"][3]]
        with pytest.raises(ModelError, match=message):
            parse(data | {"components": components})
    with pytest.raises(ModelError, match="components are unet, decoder; allowed"):
        parse(data | {"components": data["components"][2:]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "x is damaged"),
        (b"\xff", "x is damaged"),
        (b"[1", "x is damaged"),
        (b"[]", "x: it is an array; expected an object"),
        (b"[" * 100_000, "x is damaged"),
        (b'{"schema": 1, "schema": 1}', "a name comes twice"),
        (b'{"schema": 1, "size": NaN}', "NaN is no number"),
        (b'{"schema": 1, "size": Infinity}', "Infinity is no number"),
        (b" " * (MOST_BYTES + 1), "more than 16777216 bytes"),
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_manifest(text, "x")


def test_a_whole_number_serves_as_a_fraction(data: dict[str, Any]) -> None:
    data["parity"]["codes"] = 1
    codes = parse(data).parity.codes
    assert (codes, type(codes)) == (1.0, float)


def test_a_number_too_large_is_refused(data: dict[str, Any]) -> None:
    text = json.dumps(data).replace("52.1", "1e999")
    with pytest.raises(ModelError, match=r"parity\.psnr_forced is inf; expected a finite number"):
        parse_manifest(text.encode(), "x.json")


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    before = directory(tmp_path)
    with pytest.raises(ModelError, match="batches are"):
        directory(tmp_path, batches=())
    with pytest.raises(ModelError, match="size is '64'; expected int"):
        directory(tmp_path, size="64")
    assert parse_manifest((tmp_path / FILE).read_bytes()) == before
