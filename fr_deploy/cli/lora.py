"""The option --lora, as every command that loads a model has it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fr_deploy.bundle import Bundle

lora_option = click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="PATH[:SCALE]",
    help="Fuse a LoRA of peft or diffusers into the model; may be repeated.",
)


def with_loras(name: str, loras: Sequence[str], say: Callable[[str], None]) -> "str | Bundle":
    """A model's name as it is, or its bundle with LoRAs fused, which `say` then hears the proof of.

    Raises:
        UsageError: a text that `parse_lora` does not take, or one file twice.
        ModelError, ResourceError: as `read_bundle`.
    """
    if not loras:
        return name
    from fr_deploy.bundle import read_bundle
    from fr_deploy.models.lora import parse_lora

    bundle = read_bundle(name, loras=[parse_lora(text) for text in loras])
    say(str(bundle.fused))
    return bundle
