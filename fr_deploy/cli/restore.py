"""`fr-deploy restore`: photos in, photos with restored faces out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fr_deploy.cli.lora import with_loras
from fr_deploy.cli.options import (
    device_option,
    face_options,
    model_options,
    output_options,
    refuse_mixed,
    runtime_options,
)

if TYPE_CHECKING:
    from fr_deploy.cli.restore_output import Display
    from fr_deploy.inputs import Job
    from fr_deploy.restore_files import FileResult, RunSettings
    from fr_deploy.restorer import Restorer, SampledRestorer


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
@model_options
@face_options
@output_options
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
@device_option
@click.option("--require-gpu", is_flag=True, help="Fail where --device auto would use the CPU.")
@runtime_options
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
    refuse_mixed(given)
    if given["engines"] is not None:
        exported = Exported(given["engines"], given["allow_unverified"], given["trust"])
        return load_exported(exported, request=asked, **batches)
    source = with_loras(given["model"], given["loras"], display.note)
    latent, seed = given["latent"], given["seed"]
    return load_restorer(source, latent=latent, seed=seed, request=asked, **batches)


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
