"""The options that several commands share, each defined once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fr_deploy.cli.lora import lora_option

Command = Callable[..., Any]

_ANGLES = {0, 90, 180, 270}
_DEFAULT_PIXELS = 50_000_000  # that of fr_deploy.images.Limits, which is too heavy to import here


def _rotations(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    del ctx, param
    try:
        angles = tuple(int(part) for part in value.split(","))
    except ValueError:
        angles = ()
    if not angles or not set(angles) <= _ANGLES:
        raise click.BadParameter(f"{value!r}; allowed are 0, 90, 180, 270, with commas between")
    return angles


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator that adds options in the order of `--help`."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


model_options = together(
    click.option(
        "--model", default="lafr-mini", show_default=True, help="A bundle: name or folder."
    ),
    lora_option,
    click.option(
        "--engines",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Run what `fr-deploy export` wrote there, in place of --model.",
    ),
    click.option(
        "--allow-unverified",
        is_flag=True,
        help="Run --engines whose ONNX files alone were compared with the model.",
    ),
    click.option(
        "--trust",
        type=click.Path(path_type=Path),
        metavar="KEY.pub",
        help="Refuse --engines that were not signed with this key (`fr-deploy sign`).",
    ),
)
"""Which model, and how far an exported one is trusted."""

face_options = together(
    click.option(
        "--aligned", is_flag=True, help="Inputs are face crops: no detection, no paste back."
    ),
    click.option(
        "--faces",
        type=click.Choice(["all", "largest", "center"]),
        default="all",
        show_default=True,
        help="Which faces of a photo to restore.",
    ),
    click.option(
        "--min-face",
        type=click.IntRange(min=10),
        default=24,
        show_default=True,
        metavar="PX",
        help="Leave smaller faces alone.",
    ),
    click.option(
        "--confidence",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="0..1",
        help="How sure the detector must be.  [default: the detector's own]",
    ),
    click.option(
        "--rotations",
        default="0",
        show_default=True,
        callback=_rotations,
        metavar="DEG,...",
        help="Also look for turned faces: 0,90,180,270.",
    ),
    click.option(
        "--upscale",
        type=click.FloatRange(1, 4),
        default=1.0,
        show_default=True,
        help="Enlarge the whole photo.",
    ),
    click.option(
        "--blend",
        type=click.FloatRange(0, 1),
        default=1.0,
        show_default=True,
        help="1 is the restored face, 0 the original.",
    ),
)
"""Which faces, and how each is restored."""

output_options = together(
    click.option(
        "--only-faces", is_flag=True, help="Write the restored 512 px crops, not the photos."
    ),
    click.option(
        "--copy-faceless", is_flag=True, help="Write photos in which no face was found, too."
    ),
    click.option(
        "--ext",
        type=click.Choice(["jpg", "png", "webp", "tif", "bmp", "avif"]),
        help="Format of the results.  [default: as the input]",
    ),
    click.option(
        "--suffix", default="", help="Put behind the name: _restored gives a_restored.jpg."
    ),
    click.option(
        "--quality",
        type=click.IntRange(1, 100),
        default=95,
        show_default=True,
        help="Of JPEG, WebP and AVIF.",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1, 178_956_970),
        default=_DEFAULT_PIXELS,
        show_default=True,
        help="Refuse larger photos.",
    ),
)
"""What is written."""

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N; auto is the first GPU, if there is one.",
)

runtime_options = together(
    click.option(
        "--dtype",
        type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
        default="auto",
        show_default=True,
        help="auto is fp16 on a GPU, fp32 on a CPU.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["auto", "torch-eager", "torch-compile", "torch-graphs", "onnxruntime"]),
        default="auto",
        show_default=True,
        help="What runs the model; `fr-deploy doctor` tells what works here.",
    ),
    click.option(
        "--attention",
        type=click.Choice(
            ["auto", "sdpa", "flash", "efficient", "cudnn", "math", "xformers", "products"]
        ),
        default="auto",
        show_default=True,
        help="Who computes attention in torch.",
    ),
    click.option("--batch", type=click.IntRange(min=1), help="Faces a batch at most."),
    click.option(
        "--fixed-bucket",
        type=click.IntRange(min=1),
        metavar="N",
        help="Pad every batch to N faces: a result then depends on its face alone, bit for bit.",
    ),
)
"""What computes, in which numbers, how many faces at once."""


def refuse_mixed(given: dict[str, Any]) -> None:
    """What was exported holds its model and LoRAs; a bundle has no engines to trust."""
    engines = given["engines"] is not None
    of_bundles, of_engines = ("model", "loras", "latent", "seed"), ("allow_unverified", "trust")
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    wrong = [
        name.replace("loras", "lora").replace("_", "-")
        for name in (of_bundles if engines else of_engines)
        if name in given and context.get_parameter_source(name) is not default
    ]
    if wrong:
        way = "without" if engines else "together with"
        raise click.UsageError(f"--{wrong[0]} is for runs {way} --engines; leave one of them out")
