"""`fr-deploy doctor`: what runs here, what does not, and why."""

import click


@click.command(short_help="Say what works on this machine, and why the rest does not.")
@click.option("--model", default="lafr-mini", show_default=True, help="A bundle: name or folder.")
@click.option("--compile", "compiled", is_flag=True, help="Try torch.compile too: minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def doctor(model: str, compiled: bool, as_json: bool) -> None:
    """Say what works on this machine, and why the rest does not.

    Every backend restores one picture, which must be the one that torch makes in float32, and is timed.
    On a CPU the faster one is remembered: `--backend auto` uses it from then on. Every kind of attention is
    held to eager code. Exits 6 if no backend works.
    """
    import json
    from dataclasses import asdict

    from fr_deploy.errors import ResourceError
    from fr_deploy.runtime.devices import choose_place
    from fr_deploy.runtime.doctor import Check, cache_note, check_backends, facts
    from fr_deploy.runtime.doctor_attention import check_attention, summary
    from fr_kernels.cache import cache_dir

    def show(check: Check) -> None:
        if as_json:
            return
        speed = f"{check.milliseconds:8.1f} ms a face" if check.milliseconds else check.reason
        click.echo(
            f"  {'ok' if check.works else 'no':<3} {check.backend:<14} {check.device}  {speed}"
        )

    known = facts()
    if not as_json:
        _print_facts(known, cache_note(cache_dir()))
        click.echo(f"self-test with {model}")
    checks = check_backends(model, compiled=compiled, show=show)
    place = choose_place()
    attention = check_attention(place)
    if as_json:
        found = {"backends": checks, "attention": attention}
        rows = {name: [asdict(row) for row in of] for name, of in found.items()}
        click.echo(json.dumps(known | {"model": model} | rows))
    else:
        click.echo("\n".join([f"attention on {place.label} in {place.dtype}", *summary(attention)]))
    if not any(check.works for check in checks):
        raise ResourceError("no backend works here; the reasons are above")


def _print_facts(known: dict[str, object], cache: str) -> None:
    click.echo(
        f"fr-deploy {known['fr_deploy']}, Python {known['python']}, {known['system']}, {known['cores']} cores"
    )
    packages = known["packages"]
    assert isinstance(packages, dict)
    for name, found in packages.items():
        click.echo(f"  {name:<18} {found or '-'}")
    gpus = known["gpus"]
    assert isinstance(gpus, list)
    for gpu in gpus:
        click.echo(
            f"  GPU {gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['capability']}"
        )
    if known["no_gpu"]:
        click.echo(f"  no GPU: {known['no_gpu']}")
    click.echo(f"  cache {cache}")
