"""How far pictures are apart, and the pictures that ways of computing are compared on."""

import pytest
import torch

from fr_deploy.runtime.agreement import Agreement, agree, random_pictures


def test_differences_are_counted() -> None:
    base = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    assert agree(base, base) == Agreement(2, 0.0, 0, float("inf"))
    level = agree(base + 1, base)
    assert (level.differing, level.largest) == (1.0, 1)
    assert level.psnr == pytest.approx(48.13, abs=0.01)  # 10 log10(255^2)
    one = base.clone()
    one[0, 0, 0] += 2  # 10 log10(255^2 / (3 * 4 / 6144)) = 75 dB
    assert agree(base, one).psnr == agree(one, base).psnr == pytest.approx(75.22, abs=0.01)
    one[1, 0, 0, 0] = 0
    assert (
        str(agree(one, base))
        == "2 faces, 0.0651% of the values differ, by 100 of 255 at most, 46.0 dB"
    )
    with pytest.raises(ValueError, match="expected one shape"):
        agree(base, base[:1])


def test_pictures_are_always_the_same_and_use_the_range() -> None:
    faces = random_pictures(64, 3)
    assert (faces.shape, faces.dtype) == ((3, 64, 64, 3), torch.uint8)
    assert torch.equal(faces, random_pictures(64, 3))
    assert not torch.equal(faces[0], faces[1])
    assert random_pictures(64).shape == (1, 64, 64, 3)
    assert faces.float().std() > 40
    assert (faces[:, 1:].int() - faces[:, :-1].int()).float().std() > 8, "grain"
