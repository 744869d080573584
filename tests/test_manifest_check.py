"""A directory that is not what its manifest says is refused before a file is loaded, each time with its own message."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from exported_toy import changed
from fr_deploy.errors import FrDeployError, ModelError, ResourceError
from fr_deploy.manifest import FILE, File, Gpu, Manifest, Tensor
from fr_deploy.manifest_check import Here, check, numbers, require_tensors
from fr_deploy.manifest_files import checked_bytes
from manifest_cases import HERE, LATENT, VERSION, directory, with_tensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "engines of mine"


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return directory(folder)


def refused(folder: Path, here: Here = HERE, kind: type[FrDeployError] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        check(folder, here)
    return str(caught.value)


def with_file(manifest: Manifest, **changes: object) -> dict[str, object]:
    unet = manifest.components[2]
    files = (replace(unet.files[0], **changes),)
    components = (*manifest.components[:2], replace(unet, files=files), manifest.components[3])
    return {"components": components}


def test_what_matches_passes(folder: Path, manifest: Manifest) -> None:
    assert check(folder, HERE) == manifest
    (folder / "note.txt").write_text("what the manifest does not list is not looked at")
    assert check(folder, replace(HERE, capability="12.0")) == manifest


def test_onnx_files_need_neither_gpu_nor_tensorrt(folder: Path) -> None:
    manifest = directory(folder, "onnx")
    assert check(folder, Here({}, no_gpu="none")) == manifest


def test_one_bit_flipped(folder: Path, manifest: Manifest) -> None:
    path = folder / "unet.engine"
    data = bytearray(path.read_bytes())
    data[7] ^= 0x10
    path.write_bytes(data)
    message = refused(folder)
    assert f"{path}: sha256 is " in message
    assert f"the manifest says {manifest.components[2].files[0].sha256}" in message
    assert (
        f"fr-deploy export BUNDLE -o '{folder}' --format tensorrt-rtx --precision fp16" in message
    )
    with pytest.raises(ModelError, match="was changed while it was read"):
        checked_bytes(folder, manifest.components[2].files[0])


def test_a_wrong_digest_in_the_manifest(folder: Path, manifest: Manifest) -> None:
    right = manifest.components[2].files[0].sha256
    changed(folder, **with_file(manifest, sha256="0" * 64))
    assert f"sha256 is {right}, the manifest says {'0' * 64}: one of both was changed" in refused(
        folder
    )


def test_a_file_cut_off_and_one_too_long(folder: Path, manifest: Manifest) -> None:
    path = folder / "decoder.engine"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    size = len(whole)
    assert f"was cut off: it has {size - 1} bytes, the manifest says {size}" in refused(folder)
    path.write_bytes(whole + b"x")
    assert f"is longer than it was: it has {size + 1} bytes, the manifest says {size}" in refused(
        folder
    )
    assert len(manifest.components) == 4


@pytest.mark.usefixtures("manifest")
def test_a_missing_file(folder: Path) -> None:
    (folder / "adapter.engine").unlink()
    assert "adapter.engine is missing, the manifest lists it with" in refused(folder)
    (folder / "adapter.engine").mkdir()
    assert "adapter.engine is missing" in refused(folder)


@pytest.mark.usefixtures("manifest")
def test_no_manifest(folder: Path) -> None:
    (folder / FILE).unlink()
    assert "has no manifest.json, so it is no finished export; make one, or finish it" in refused(
        folder
    )
    assert "is no directory, so it is no finished export" in refused(folder / "unet.engine")
    assert "is no directory" in refused(folder / "nothing")


@pytest.mark.parametrize(
    "path", ["../x.engine", "a/../../x.engine", "{abs}", "", ".", "..\\x", "C:x", "a\0b"]
)
def test_a_path_that_leaves_the_folder(path: str, folder: Path, manifest: Manifest) -> None:
    outside = folder.parent / "x.engine"
    outside.write_bytes((folder / "unet.engine").read_bytes())
    changed(folder, **with_file(manifest, path=path.format(abs=outside)))
    message = refused(folder)
    assert "leaves the directory; allowed are files inside it" in message or path == "."


def test_a_link_that_leaves_the_folder(folder: Path, manifest: Manifest) -> None:
    path, outside = folder / "unet.engine", folder.parent / "x.engine"
    path.rename(outside)
    path.symlink_to(outside)
    message = refused(folder)
    assert f"{path} leads out of the directory, to {outside}; allowed" in message
    path.unlink()
    (folder / "kept").write_bytes(outside.read_bytes())
    path.symlink_to("kept")
    assert check(folder, HERE) == manifest


def test_a_version(folder: Path, manifest: Manifest) -> None:
    message = refused(folder, replace(HERE, versions={"tensorrt-rtx": "1.8.0.1"}))
    assert f"versions.tensorrt-rtx is {VERSION}, and 1.8.0.1 is installed" in message
    assert f"pip install 'fr-deploy[cuda]' tensorrt-rtx=={VERSION}" in message
    message = refused(folder, replace(HERE, versions={"tensorrt": VERSION}), ResourceError)
    assert f"needs tensorrt-rtx {VERSION}, which is not installed: pip install" in message
    changed(folder, versions={"torch": "2.13.0"})
    assert "versions has no tensorrt-rtx, which built the engines" in refused(folder)
    assert manifest.format == "tensorrt-rtx"


@pytest.mark.usefixtures("manifest")
def test_a_gpu(folder: Path) -> None:
    none = Here(HERE.versions, no_gpu="CUDA finds none")
    message = refused(folder, none, ResourceError)
    assert "holds engines for NVIDIA GPUs, and there is none: CUDA finds none. For a CPU" in message
    message = refused(folder, replace(HERE, gpu="NVIDIA H200", capability="9.0"))
    assert "gpu.capabilities are 8.9, 12.0, and NVIDIA H200 has 9.0; build for it: " in message
    changed(folder, gpu=Gpu(None, (), ""))
    message = refused(folder, replace(HERE, capability="7.5"))
    assert "capabilities is empty, which means 8.0 and later, and" in message
    assert message.endswith("--compute-capability 7.5")
    assert check(folder, replace(HERE, capability="12.1", driver=None))
    changed(folder, gpu=Gpu("NVIDIA L4", ("8.9",), ""))
    message = refused(folder)
    assert f"gpu.name is 'NVIDIA L4', and the GPU here is '{HERE.gpu}'; build for it" in message


@pytest.mark.usefixtures("manifest")
def test_a_driver(folder: Path) -> None:
    message = refused(folder, replace(HERE, driver="575.9"), ResourceError)
    assert "gpu.driver is 580.65 or newer, and 575.9 is installed; install a newer" in message
    assert check(folder, replace(HERE, driver="1000.1"))
    assert numbers("580.65.06") == (580, 65, 6)
    with pytest.raises(ModelError, match=r"'580\.x' is no version"):
        numbers("580.x")


def test_a_shape(folder: Path, manifest: Manifest) -> None:
    narrow = Tensor("latent", "float16", ("batch", 4, 8, 8))
    wide = Tensor("latent", "float32", LATENT[1])
    big = Tensor("faces", "uint8", ("batch", 512, 512, 3))
    for at, side, tensor, message in (
        (1, "inputs", narrow, "encoder gives 'latent', float16 [batch, 4, 16, 16], and adapter takes "
         "'latent', float16 [batch, 4, 8, 8]; both must be the same"),
        (2, "outputs", wide, "unet gives 'latent', float32 [batch, 4, 16, 16], and decoder takes"),
        (0, "inputs", big, "encoder takes 'faces', uint8 [batch, 512, 512, 3]; with size 64 it is uint8 "
         "[batch, 64, 64, 3]"),
        (3, "outputs", wide, "decoder gives 'latent', float32 [batch, 4, 16, 16]; with size 64 it is"),
    ):  # fmt: skip
        changed(folder, components=with_tensor(manifest, at, side, tensor))
        assert message in refused(folder)


@pytest.mark.usefixtures("manifest")
def test_unverified_engines_are_asked_for_by_name(folder: Path) -> None:
    unverified = changed(folder, verified="onnx only")
    message = refused(folder)
    assert "verified is 'onnx only'" in message
    assert "fr-deploy verify " in message
    assert message.endswith("--allow-unverified")
    assert check(folder, HERE, allow_unverified=True) == unverified


def test_what_comes_first_is_said_first(folder: Path, manifest: Manifest) -> None:
    """All is wrong; mended in the order of `check`, each mistake shows once."""
    wrong = Tensor("latent", "float16", ("batch", 4, 8, 8))
    others = with_tensor(manifest, 1, "inputs", wrong)
    changed(folder, components=others, verified="onnx only")
    engine = (folder / "encoder.engine").read_bytes()
    (folder / "encoder.engine").write_bytes(engine[:-1])
    (folder / "decoder.engine").write_bytes(b"T" + (folder / "decoder.engine").read_bytes()[1:])
    assert "was cut off" in refused(folder)
    (folder / "encoder.engine").write_bytes(engine)
    assert "sha256 is" in refused(folder)
    directory(folder, components=others, verified="onnx only")
    poor = Here({"tensorrt-rtx": "1"}, "GPU", "7.5", "1")
    assert "versions.tensorrt-rtx" in refused(folder, poor)
    assert "gpu.capabilities" in refused(folder, replace(poor, versions=HERE.versions))
    old = replace(HERE, driver="1")
    assert "gpu.driver" in refused(folder, old, ResourceError)
    assert "both must be the same" in refused(folder)
    directory(folder, verified="onnx only")
    assert "verified is" in refused(folder)


def test_what_a_file_takes_is_held_to_the_manifest() -> None:
    one, other = Tensor("x", "uint8", ("batch", 3)), Tensor("x", "int32", ("batch", 3))
    require_tensors("f", "inputs", [one], [one])
    with pytest.raises(
        ModelError, match=r"f: inputs 'x': the manifest says uint8 \[batch, 3\], the file has int32"
    ):
        require_tensors("f", "inputs", [one], [other])
    with pytest.raises(ModelError, match=r"the file has nothing"):
        require_tensors("f", "inputs", [one], [])
    with pytest.raises(ModelError, match=r"the manifest says nothing, the file has uint8"):
        require_tensors("f", "inputs", [], [one])


def test_a_pipe_is_no_file(folder: Path, manifest: Manifest) -> None:
    os.mkfifo(folder / "pipe")
    file: dict[str, object] = {"path": "pipe", "bytes": 0}
    changed(folder, **with_file(manifest, **file))
    assert "pipe is missing" in refused(folder)
    assert isinstance(manifest.components[2].files[0], File)
