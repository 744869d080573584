"""An exported directory in onnxruntime restores what torch restores, in any batch it takes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exported_toy import changed, file_of, pictures
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.manifest import Batches, Manifest, Tensor, parse_manifest
from fr_deploy.manifest_check import Here, check
from fr_deploy.runtime.agreement import agree, random_pictures
from fr_deploy.runtime.onnx_chain import OnnxChain
from fr_deploy.runtime.profiles import padded, profile
from micro_export import faces, micro

NOTHING = Here({}, no_gpu="none")


@pytest.fixture(scope="module")
def chain(exported: Path) -> OnnxChain:
    return OnnxChain(exported, check(exported, NOTHING))


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "toy"))


def manifest_of(folder: Path) -> Manifest:
    return parse_manifest((folder / "manifest.json").read_bytes())


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_it_restores_what_torch_restores(batch: int, chain: OnnxChain) -> None:
    faces, expected = (whole[:batch] for whole in pictures())
    kept = faces.clone()
    assert agree(chain.run(faces), expected).psnr >= 60
    assert torch.equal(faces, kept)


def test_a_result_is_not_overwritten_by_the_next(chain: OnnxChain) -> None:
    faces = random_pictures(64, 3)
    first = chain.run(faces)
    kept = first.clone()
    chain.run(faces.flip(0))
    assert torch.equal(first, kept)
    assert torch.equal(chain.run(faces), kept)
    turned = faces.permute(0, 2, 1, 3)
    assert torch.equal(chain.run(turned), chain.run(turned.contiguous()))


def test_what_it_says_of_itself(chain: OnnxChain) -> None:
    said = (chain.name, chain.device, chain.dtype, chain.size, chain.limit)
    assert said == ("onnxruntime", "cpu", "fp32", 64, 8)


def test_faces_between_two_batches_are_padded(copy: Path) -> None:
    changed(copy, batches=(Batches(2, 2, 2), Batches(5, 5, 5)))
    bucketed = OnnxChain(copy, check(copy, NOTHING))
    assert bucketed.limit == 5
    faces, expected = pictures()
    for count in (1, 2, 3, 5):
        got = bucketed.run(faces[:count])
        assert agree(got, expected[:count]).psnr >= 60
    assert set(bucketed._bound) == {2, 5}
    with pytest.raises(UsageError, match="6 faces at once; allowed are 5"):
        bucketed.run(random_pictures(64, 6))


@pytest.mark.parametrize("latent", ["float32", "float16"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_goes_in_comes_out(latent: str, whole: bool, tmp_path: Path) -> None:
    """Components that compute nothing, with codes as an output that the chain has no use for."""
    manifest = micro(tmp_path, latent, whole=whole)
    chain = OnnxChain(tmp_path, check(tmp_path, NOTHING))
    assert chain.dtype == manifest.precision
    for count in (1, 3, 8, 2):
        given = torch.from_numpy(faces(count))
        assert torch.equal(chain.run(given), given)


def test_which_batch_and_profile() -> None:
    buckets = (Batches(1, 1, 1), Batches(4, 4, 4), Batches(8, 8, 8))
    assert [padded(n, buckets) for n in range(1, 9)] == [1, 4, 4, 4, 8, 8, 8, 8]
    assert [profile(n, buckets) for n in (1, 4, 8)] == [0, 1, 2]
    ranges = (Batches(3, 8, 16), Batches(1, 2, 4))
    assert [padded(n, ranges) for n in (1, 4, 5, 16)] == [1, 4, 5, 16]
    assert [profile(n, ranges) for n in (1, 4, 5, 16)] == [1, 1, 0, 0]


def test_a_file_with_other_tensors_than_its_manifest_says(copy: Path) -> None:
    manifest = manifest_of(copy)
    latent = manifest.components[1].inputs[0]
    renamed = replace(latent, name="z")
    adapter = replace(manifest.components[1], inputs=(renamed,))
    parts = (manifest.components[0], adapter, *manifest.components[2:])
    changed(copy, components=parts)
    with pytest.raises(ModelError, match=r"adapter.onnx: inputs 'z': the manifest says float32"):
        OnnxChain(copy, check(copy, NOTHING))
    narrow = Tensor(latent.name, "float32", ("batch", *latent.shape[1:3], 8))
    first = replace(manifest.components[0], outputs=(narrow,))
    second = replace(manifest.components[1], inputs=(narrow,))
    changed(copy, components=(first, second, *manifest.components[2:]))
    with pytest.raises(ModelError, match=r"encoder.onnx: outputs 'latent': the manifest"):
        OnnxChain(copy, check(copy, NOTHING))


def test_a_file_that_is_no_onnx(copy: Path) -> None:
    (copy / "unet.onnx").write_bytes(b"no protobuf")
    manifest = manifest_of(copy)
    unet = replace(manifest.components[2], files=(file_of(copy, "unet.onnx"),))
    changed(copy, components=(*manifest.components[:2], unet, manifest.components[3]))
    with pytest.raises(ModelError, match=r"unet.onnx cannot be loaded"):
        OnnxChain(copy, check(copy, NOTHING))


def test_other_faces_are_refused(exported: Path) -> None:
    chain = OnnxChain(exported, check(exported, NOTHING))
    for wrong in (torch.zeros(0, 64, 64, 3), torch.zeros(1, 64, 64, 3), random_pictures(32, 1)):
        with pytest.raises(UsageError, match="expected uint8 \\[B, 64, 64, 3\\]"):
            chain.run(wrong)
    chain.close()
    chain.close()
    with pytest.raises(UsageError, match="the backend is closed"):
        chain.run(random_pictures(64, 1))
