"""`fr-deploy sign`: sign an exported directory."""

from pathlib import Path

import click

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Sign an exported directory.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--key", type=_FILE, required=True, help="File of the private key.")
@click.option("--make-key", is_flag=True, help="Make KEY first, and KEY.pub; neither may exist.")
def sign(folder: Path, key: Path, make_key: bool) -> None:
    """Sign DIR, which `fr-deploy export` wrote, with an ed25519 key.

    The signature is of DIR/manifest.json, which holds the digest of every file, and lies beside it. Who has KEY.pub
    runs nothing else with `fr-deploy restore --engines DIR --trust KEY.pub`.

    \b
      fr-deploy sign engines --key release.key --make-key
    """
    from fr_deploy.manifest_sign import make_keys
    from fr_deploy.manifest_sign import sign as write

    if make_key:
        click.echo(f"{make_keys(key)}  to be given to those who run what you sign")
        click.echo(f"{key}  to be kept secret")
    click.echo(write(folder, key))
