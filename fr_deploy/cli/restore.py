"""`fr-deploy restore`: photos in, photos with restored faces out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fr_deploy.cli.lora import lora_option, with_loras

if TYPE_CHECKING:
    from fr_deploy.cli.restore_output import Display
    from fr_deploy.inputs import Job
    from fr_deploy.restore_files import FileResult, RunSettings
    from fr_deploy.restorer import Restorer, SampledRestorer

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


@click.command(short_help="Restore the faces in photos.")
@click.argument("inputs", nargs=-1, metavar="INPUT...", type=str)
@click.option("-i", "--input", "more", multiple=True, help="One more input, as INPUT.")
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder; or a file name, for one photo.",
)
@click.option("--model", default="lafr-mini", show_default=True, help="A bundle: name or folder.")
@lora_option
@click.option(
    "--engines",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run what `fr-deploy export` wrote there, in place of --model.",
)
@click.option(
    "--allow-unverified",
    is_flag=True,
    help="Run --engines whose ONNX files alone were compared with the model.",
)
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    metavar="KEY.pub",
    help="Refuse --engines that were not signed with this key (`fr-deploy sign`).",
)
@click.option("--aligned", is_flag=True, help="Inputs are face crops: no detection, no paste back.")
@click.option(
    "--faces",
    type=click.Choice(["all", "largest", "center"]),
    default="all",
    show_default=True,
    help="Which faces of a photo to restore.",
)
@click.option(
    "--min-face",
    type=click.IntRange(min=10),
    default=24,
    show_default=True,
    metavar="PX",
    help="Leave smaller faces alone.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="0..1",
    help="How sure the detector must be.  [default: the detector's own]",
)
@click.option(
    "--rotations",
    default="0",
    show_default=True,
    callback=_rotations,
    metavar="DEG,...",
    help="Also look for turned faces: 0,90,180,270.",
)
@click.option(
    "--upscale",
    type=click.FloatRange(1, 4),
    default=1.0,
    show_default=True,
    help="Enlarge the whole photo.",
)
@click.option(
    "--blend",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="1 is the restored face, 0 the original.",
)
@click.option("--only-faces", is_flag=True, help="Write the restored 512 px crops, not the photos.")
@click.option("--copy-faceless", is_flag=True, help="Write photos in which no face was found, too.")
@click.option(
    "--ext",
    type=click.Choice(["jpg", "png", "webp", "tif", "bmp", "avif"]),
    help="Format of the results.  [default: as the input]",
)
@click.option("--suffix", default="", help="Put behind the name: _restored gives a_restored.jpg.")
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="Of JPEG, WebP and AVIF.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 178_956_970),
    default=_DEFAULT_PIXELS,
    show_default=True,
    help="Refuse larger photos.",
)
@click.option(
    "--skip-existing",
    is_flag=True,
    help="Leave photos alone whose result exists; otherwise it is replaced.",
)
@click.option("--report", type=click.Path(path_type=Path), help="Write a before/after HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
@click.option(
    "--latent",
    type=click.Choice(["mode", "sample"]),
    default="mode",
    show_default=True,
    help="mode repeats exactly; sample draws noise from --seed.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N; auto is the first GPU, if there is one.",
)
@click.option("--require-gpu", is_flag=True, help="Fail where --device auto would use the CPU.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is fp16 on a GPU, fp32 on a CPU.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "torch-eager", "torch-compile", "torch-graphs", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What runs the model; `fr-deploy doctor` tells what works here.",
)
@click.option(
    "--attention",
    type=click.Choice(
        ["auto", "sdpa", "flash", "efficient", "cudnn", "math", "xformers", "products"]
    ),
    default="auto",
    show_default=True,
    help="Who computes attention in torch.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Faces a batch at most.")
@click.option(
    "--fixed-bucket",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pad every batch to N faces: a result then depends on its face alone, bit for bit.",
)
def restore(**given: Any) -> None:
    """Restore the faces in photos.

    INPUT is a file, a folder (searched to the bottom, its tree is kept) or a pattern such as
    'old/**/*.jpg'. A photo that cannot be used never stops the run: it is named with its reason at
    the end, and the exit code is 3 (4 if no photo could be used at all).

    Results have the format of the input (GIF becomes PNG). GPS data, thumbnails and maker notes are
    left out of them; camera, dates and author stay.

    \b
      fr-deploy restore old/ -o new/ --report new/report.html
      fr-deploy restore scan.tif -o better.png --upscale 2
    """
    from fr_deploy.cli.restore_output import Display
    from fr_deploy.inputs import collect_inputs, plan_jobs
    from fr_deploy.restore_files import exit_code, refused

    names = [*given["inputs"], *given["more"]]
    if not names:
        raise click.UsageError("no INPUT: name photos, folders or patterns")
    out: Path = given["out"]
    found = collect_inputs(names, outside=out)
    jobs = plan_jobs(found, out, ext=given["ext"], suffix=given["suffix"])
    _make_folder(jobs, out)
    display = Display(len(jobs), out, as_json=given["as_json"], report=given["report"])
    results = refused(found.refusals)
    if jobs:
        results += _run(jobs, _settings(given), given, display)
    display.finish(results, found.ignored)
    raise SystemExit(exit_code(results))


def _settings(given: dict[str, Any]) -> "RunSettings":
    from fr_deploy.images import Limits
    from fr_deploy.pipeline import RestoreOptions
    from fr_deploy.restore_files import RunSettings

    names = ("faces", "min_face", "rotations", "upscale", "blend", "aligned")
    return RunSettings(
        RestoreOptions(**{name: given[name] for name in names}),
        Limits(max_pixels=given["max_pixels"]),
        quality=given["quality"],
        only_faces=given["only_faces"],
        copy_faceless=given["copy_faceless"],
        skip_existing=given["skip_existing"],
    )


def _run(
    jobs: list["Job"], settings: "RunSettings", given: dict[str, Any], display: "Display"
) -> list["FileResult"]:
    import cv2
    import torch

    from fr_deploy.faces import FaceDetector
    from fr_deploy.restore_files import restore_files

    threads = given["threads"]
    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    restorer = _restorer(given, display)
    confidence = {} if given["confidence"] is None else {"confidence": given["confidence"]}
    detector = None if given["aligned"] else FaceDetector(threads=threads, **confidence)
    display.start(restorer.name, restorer.device, settings)
    with display:
        return restore_files(jobs, detector, restorer, settings, display.show)


def _restorer(given: dict[str, Any], display: "Display") -> "Restorer | SampledRestorer":
    from fr_deploy.restorer import load_exported, load_restorer
    from fr_deploy.runtime.exported import Exported
    from fr_deploy.runtime.select import Request

    names = ("device", "dtype", "backend", "attention", "require_gpu", "threads")
    asked = Request(**{name: given[name] for name in names})
    batches = {name: given[name] for name in ("batch", "fixed_bucket")}
    _refuse_mixed(given)
    if given["engines"] is not None:
        exported = Exported(given["engines"], given["allow_unverified"], given["trust"])
        return load_exported(exported, request=asked, **batches)
    source = with_loras(given["model"], given["loras"], display.note)
    latent, seed = given["latent"], given["seed"]
    return load_restorer(source, latent=latent, seed=seed, request=asked, **batches)


def _refuse_mixed(given: dict[str, Any]) -> None:
    """What was exported holds its model and LoRAs; a bundle has no engines to trust."""
    engines = given["engines"] is not None
    of_bundles, of_engines = ("model", "loras", "latent", "seed"), ("allow_unverified", "trust")
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    wrong = [
        name.replace("loras", "lora").replace("_", "-")
        for name in (of_bundles if engines else of_engines)
        if context.get_parameter_source(name) is not default
    ]
    if wrong:
        way = "without" if engines else "together with"
        raise click.UsageError(f"--{wrong[0]} is for runs {way} --engines; leave one of them out")


def _make_folder(jobs: list["Job"], out: Path) -> None:
    """Find out before the model is loaded that results cannot be written."""
    from fr_deploy.errors import UsageError

    if not jobs:
        return
    folder = out.parent if jobs[0].output == out else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from error
