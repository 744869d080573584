"""Bundles: what people exchange. A diffusers-style folder, safetensors only.

    model_index.json      family, preset, versions
    vae/  unet/           diffusers' config.json and diffusion_pytorch_model.safetensors
    adapter/              config.json and model.safetensors
    static/               prompt [1, tokens, dim] and time_embedding [1, T] of the one step

The UNet is stored without its time MLP, and there is no text encoder: both are constants of one-step
restoration (LAFR, section 3.3) and lie in `static/`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fr_deploy import __version__
from fr_deploy.bundle_place import EMBEDDED as EMBEDDED
from fr_deploy.bundle_place import INDEX, bundle_folder
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.models.fuse import Fused, fuse
from fr_deploy.models.lora import LoraFile
from fr_deploy.models.presets import Preset
from fr_deploy.models.restorer import RestorationGraph

if TYPE_CHECKING:  # diffusers takes seconds to import, and restoring does not need it
    from fr_deploy.models.lafr import LafrModel

_DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


def save_bundle(
    model: "LafrModel", folder: Path, *, dtype: torch.dtype = torch.float32, trained: bool = True
) -> None:
    """Write a bundle; the folder appears whole or not at all.

    Args:
        model: its time MLP is replaced by the stored embedding in the bundle, not in `model`.
        folder: must not exist, or be empty.
        dtype: of the stored weights.
        trained: False marks a bundle that cannot restore yet (a freshly initialised adapter).

    Raises:
        UsageError: the folder exists and holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty; choose another folder or remove it")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    unet = {k: v for k, v in model.unet.state_dict().items() if not k.startswith("time_embedding.")}
    static = {"prompt": model.prompt.detach(), "time_embedding": model.time_embedding()}
    preset = asdict(model.preset)
    _save_part(part / "vae", _config(model.vae), model.vae.state_dict(), _DIFFUSERS_FILE, dtype)
    _save_part(part / "unet", _config(model.unet), unet, _DIFFUSERS_FILE, dtype)
    adapter_state = model.adapter.state_dict()
    _save_part(
        part / "adapter",
        {"_class_name": "CodebookAdapter"},
        adapter_state,
        "model.safetensors",
        dtype,
    )
    timestep = {"timestep": model.step.timestep}
    _save_part(part / "static", timestep, static, "model.safetensors", dtype)
    index = {
        "_class_name": "LafrModel",
        "family": "lafr",
        "fr_deploy_version": __version__,
        "trained": trained,
        "preset": preset,
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "adapter": ["fr_deploy", "CodebookAdapter"],
    }
    (part / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    if folder.exists():
        folder.rmdir()
    part.replace(folder)


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds, as read: on the CPU, in the dtypes stored; float32 where LoRAs are fused."""

    name: str
    """As the user named it, and the LoRAs fused."""
    folder: Path
    preset: Preset
    tensors: dict[str, Tensor]
    """By the names of `LafrModel.state_dict()`, the time embedding left out."""
    time_embedding: Tensor
    """[1, T]"""
    scaling: float
    """The VAE's scaling factor."""
    fused: Fused | None = None
    """Which LoRAs are in the weights, and how exact they are."""


def read_bundle(
    name: str | Path, *, loras: Sequence[LoraFile] = (), allow_untrained: bool = False
) -> Bundle:
    """Read a bundle by embedded name, folder, or hub id, and fuse LoRAs into its weights.

    The hub is asked only when no such folder exists, and never when HF_HUB_OFFLINE is set.

    Raises:
        ModelError: not a bundle, another family, damaged weights, an untrained adapter, or a LoRA that does not
            fit (`fuse`).
        ResourceError: a hub id that could not be fetched.
        UsageError: a LoRA given twice.
    """
    folder = bundle_folder(name)
    index = _read_json(folder / INDEX)
    if index.get("family") != "lafr" or "preset" not in index:
        raise ModelError(
            f"{folder / INDEX} is of family {index.get('family')!r}; allowed: 'lafr'. A Stable Diffusion "
            f"folder becomes a bundle with: fr-deploy import-sd {folder} -o BUNDLE"
        )
    if not index["trained"] and not allow_untrained:
        raise ModelError(f"{folder}: its adapter is not trained, so it cannot restore a face")
    preset = _preset(index["preset"], folder)
    static = _read_tensors(folder / "static" / "model.safetensors")
    files = {"unet": _DIFFUSERS_FILE, "vae": _DIFFUSERS_FILE, "adapter": "model.safetensors"}
    tensors = {"prompt": static["prompt"]}
    for part, file in files.items():
        read = _read_tensors(folder / part / file)
        tensors |= {f"{part}.{key}": tensor for key, tensor in read.items()}
    scaling = float(_read_json(folder / "vae" / "config.json")["scaling_factor"])
    bundle = Bundle(str(name), folder, preset, tensors, static["time_embedding"], scaling)
    return _with_loras(bundle, loras) if loras else bundle


def _with_loras(bundle: Bundle, loras: Sequence[LoraFile]) -> Bundle:
    try:
        fused = fuse(bundle.tensors, loras)
    except ModelError as error:
        raise ModelError(f"{error} (model: {bundle.name})") from error
    added = "".join(f" + {lora.path.name}:{lora.scale:g}" for lora in loras)
    return replace(bundle, name=bundle.name + added, tensors=fused.tensors, fused=fused)


def load_graph(source: str | Path | Bundle) -> RestorationGraph:
    """Load a bundle as the folded graph that restores: float32, on the CPU; no diffusers needed.

    Args:
        source: its name as `read_bundle` takes it, or what that returned.

    Raises:
        ModelError: as `read_bundle`, or weights that do not fit the bundle's preset.
        ResourceError: as `read_bundle`.
    """
    bundle = source if isinstance(source, Bundle) else read_bundle(source)
    graph = RestorationGraph(bundle.preset)
    try:
        return graph.fold(bundle.tensors, bundle.time_embedding, bundle.scaling)
    except ModelError as error:
        raise ModelError(f"{bundle.folder}: {error}") from error


def load_bundle(source: str | Path | Bundle, *, allow_untrained: bool = False) -> "LafrModel":
    """Load a bundle in the papers' terms: float32, on the CPU, in eval mode, gradients off.

    Args:
        source: its name as `read_bundle` takes it, or what that returned.
        allow_untrained: load one that cannot restore yet.

    Raises:
        ModelError: as `read_bundle`, or weights that do not fit the bundle's preset.
        ResourceError: as `read_bundle`.
    """
    from fr_deploy.models.lafr import LafrModel, StaticTime

    bundle = source
    if not isinstance(bundle, Bundle):
        bundle = read_bundle(bundle, allow_untrained=allow_untrained)
    model = LafrModel(bundle.preset)
    model.unet.time_embedding = StaticTime(bundle.time_embedding.float())
    tensors = bundle.tensors | {"unet.time_embedding.embedding": bundle.time_embedding}
    for part in ("unet", "vae", "adapter"):
        of_part = {k[len(part) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{part}.")}
        _load_strict(getattr(model, part), of_part, bundle.folder / part)
    with torch.no_grad():
        model.prompt.copy_(tensors["prompt"])
    model.vae.register_to_config(scaling_factor=bundle.scaling)
    return model.eval().requires_grad_(False)


def _config(module: Any) -> dict[str, Any]:
    return json.loads(module.to_json_string())


def _save_part(
    folder: Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    file: str,
    dtype: torch.dtype,
) -> None:
    folder.mkdir(parents=True)
    config = {k: v for k, v in config.items() if k != "_name_or_path"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = {k: v.detach().to("cpu", dtype).contiguous() for k, v in tensors.items()}
    save_file(stored, folder / file, metadata={"format": "pt"})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: {path.parent} is not a bundle") from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing") from error
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or not safetensors: {error}") from error


def _preset(fields: dict[str, Any], folder: Path) -> Preset:
    try:
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return Preset(**values)
    except TypeError as error:
        raise ModelError(
            f"{folder / INDEX}: the preset does not fit this version: {error}"
        ) from error


def _load_strict(module: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != got:
        wrong = sorted(set(expected.items()) ^ set(got.items()))
        raise ModelError(
            f"{where}: {len(wrong)} keys are missing, extra or of another shape: {wrong[:6]}"
        )
    if bad := [k for k, v in tensors.items() if not bool(v.isfinite().all())]:
        raise ModelError(f"{where}: NaN or infinity in {bad[:6]}")
    module.load_state_dict(tensors)
