"""`fr-deploy inspect`."""

import json

import click


@click.command()
@click.argument("name", metavar="BUNDLE_OR_PRESET", default="lafr-mini")
@click.option("--json", "as_json", is_flag=True, help="One JSON document in place of the table.")
def inspect(name: str, as_json: bool) -> None:
    """Count parameters, FLOPs and GPU launches of BUNDLE_OR_PRESET, unfolded and folded.

    For one face in float16. Nothing is run: shapes alone are followed, so any size is counted in seconds.
    """
    from fr_deploy.bundle import read_bundle
    from fr_deploy.models.inspect import inspect_preset, to_json
    from fr_deploy.models.presets import PRESETS

    preset = PRESETS[name] if name in PRESETS else read_bundle(name, allow_untrained=True).preset
    document = to_json(preset, inspect_preset(preset))
    if as_json:
        click.echo(json.dumps(document))
        return
    click.echo(f"{preset.name}: one {preset.size} px face, float16")
    click.echo(f"{'form':<9}{'stage':<9}{'M param':>10}{'GFLOP':>11}{'launches':>10}")
    for row in document["rows"]:
        click.echo(
            f"{row['form']:<9}{row['stage']:<9}{row['parameters'] / 1e6:10.2f}{row['gflop']:11.2f}"
            f"{row['total_launches']:10d}"
        )
    click.echo("model: unfolded; graph: folded, torch's own ops; kernels: folded, fr_kernels ops")
