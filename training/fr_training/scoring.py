"""What `fr-deploy eval` prints: the scores of a bundle, and whether its codebook matters."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from fr_deploy.bundle import load_bundle
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.restorer import Restorer
from fr_deploy.runtime.torch_backend import TorchBackend
from fr_training.evaluate import degraded, held_out_faces, run_eval, write_json
from fr_training.verdict import Row, eval_markdown, eval_table

Images = NDArray[np.uint8]


class CodebookScore(NamedTuple):
    """How far the aligned latent of degraded faces is from the clean one (mean absolute difference)."""

    before: float
    """L1 of the latent as encoded."""
    aligned: float
    """L1 after the adapter."""
    shuffled: float
    """L1 after the adapter, with the chosen codes shuffled over all positions of all faces."""
    perplexity: float
    """exp of the entropy of code use; 1 = one code, the codebook's size = all alike."""


def score_model(
    name: str,
    output: Path,
    *,
    generated: int = 32,
    levels: Sequence[str] = ("mild", "vqfr-v1", "vqfr-v2"),
    vae_only: bool = False,
) -> None:
    """Score a bundle and print the table; `output/eval.json` holds every number, `output/eval.md` the table.

    Args:
        name: embedded name, bundle folder or hub id.
        output: folder, made if missing.
        generated: held-out generated faces; the 22 faces from outside the generator are always scored.
        levels: degradations.
        vae_only: score clean faces through encoder and decoder alone instead.
    """
    console = Console()
    model = load_bundle(name)
    if vae_only:
        report = run_eval(
            VaeOnly(model), generated=generated, levels=["hq"], out=output / "vae.json"
        )
        for row in report["rows"]:
            console.print(
                f"{row['set_name']}: autoencoder alone, PSNR {row['means']['psnr']:.2f} dB"
            )
        return
    scored: list[Row] = []

    def show(rows: list[Row]) -> None:
        scored.extend(rows)
        console.print(eval_table(rows))

    restorer, out = Restorer(TorchBackend(RestorationGraph.of(model)), name), output / "eval.json"
    run_eval(restorer, generated=generated, levels=levels, out=out, on_level=show)
    (output / "eval.md").write_text(eval_markdown(scored))
    faces, _ = held_out_faces(8)
    scores = {level: codebook_score(model, faces, level) for level in levels}
    for level, score in scores.items():
        console.print(
            f"codebook, {level}: L1 to the clean latent {score.before:.4f} as encoded, {score.aligned:.4f} aligned, "
            f"{score.shuffled:.4f} with shuffled codes (+{score.shuffled / score.aligned - 1:.0%}); "
            f"perplexity {score.perplexity:.0f} of {model.preset.codes}"
        )
    write_json(output / "codebook.json", {k: v._asdict() for k, v in scores.items()})


class VaeOnly:
    """Clean face -> latent -> face: what the autoencoder alone costs."""

    def __init__(self, model: LafrModel) -> None:
        self.model = model

    @torch.inference_mode()
    def __call__(self, faces: Images) -> Images:
        """uint8 [N, S, S, 3] to the same."""
        made = [
            self.model.decode(self.model.encode(tensor_from_faces(face[None]))) for face in faces
        ]
        pixels = ((torch.cat(made) + 1) * 127.5).round().clamp(0, 255)
        return pixels.byte().permute(0, 2, 3, 1).contiguous().numpy()


def tensor_from_faces(faces: Images) -> Tensor:
    """uint8 [N, S, S, 3] to float32 [N, 3, S, S] in [-1, 1]."""
    return torch.from_numpy(np.array(faces)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def codebook_score(model: LafrModel, faces: Images, level: str) -> CodebookScore:
    """Align the latents of degraded faces as trained and with shuffled codes.

    Args:
        faces: clean, uint8 [N, S, S, 3].
        level: a degradation.
    """
    target = torch.cat([model.encode(tensor_from_faces(face[None])) for face in faces])
    worse = degraded(faces, level)
    z = torch.cat([model.encode(tensor_from_faces(face[None])) for face in worse])
    aligned, indices = model.adapter.align(z)
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
    shuffled = model.adapter.from_codes(z, model.adapter.codebook.weight[indices[order]])
    use = torch.bincount(indices, minlength=model.preset.codes).float() / len(indices)
    entropy = -(use * use.clamp_min(1e-12).log()).sum()
    before, after, mixed = (float(F.l1_loss(x, target)) for x in (z, aligned, shuffled))
    return CodebookScore(before, after, mixed, float(entropy.exp()))
