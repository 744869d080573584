"""The compiled forms of BoostHub attention: lengths that fit the tiles, lengths that do not, one or two of keys."""

import torch

from fr_kernels.boosthub_attention.plan import constants_of, default_settings
from fr_kernels.boosthub_attention.triton_impl import KERNELS
from fr_kernels.launch import Specialization

WIDTHS = (32, 40, 64, 80, 128)
# dtype, L = S, S_hub, heads, head width
UNET = ("fp16", 4096, 4096, 5, 64)  # of SD 2.1 at 512 px
TWO_LENGTHS = ("fp16", 201, 77, 5, 64)  # the bound of the loop over the keys is a run-time value
FIT = (
    ("fp16", 256, 256, 20, 64),
    ("fp16", 64, 64, 20, 64),
    ("fp16", 4096, 4096, 8, 40),
    ("fp16", 1024, 1024, 8, 80),
    ("fp16", 1024, 1024, 5, 128),
    ("fp32", 64, 64, 20, 64),
)
ODD = (
    *(("fp16", 1000, 1000, 5, width) for width in WIDTHS),
    ("fp16", 1000, 900, 5, 128),
    ("fp32", 100, 100, 5, 64),
    ("fp32", 100, 77, 5, 128),
)


def specializations() -> list[Specialization]:
    """All three kernels at each case; and the forward's smaller tile, which few queries get, at each width."""
    main = [_form(part, *case, principal=True) for case in (UNET, TWO_LENGTHS) for part in KERNELS]
    others = [_form(part, *case) for case in (*FIT, *ODD) for part in KERNELS]
    short = [_form("forward", "fp16", 201, 201, 5, width) for width in WIDTHS]
    return [*main, *others, *short]


def _form(
    part: str, dtype: str, rows: int, hub_keys: int, heads: int, width: int, principal: bool = False
) -> Specialization:
    """q, k, v, q_hub sliced from one stacked projection, k_hub and v_hub from another."""
    torch_dtype = torch.float16 if dtype == "fp16" else torch.float32
    own = torch.empty((1, rows, 4, heads, width), dtype=torch_dtype, device="meta").unbind(2)
    hub = torch.empty((1, hub_keys, 2, heads, width), dtype=torch_dtype, device="meta").unbind(2)
    settings = default_settings(part, torch_dtype, rows, width)
    constants = {**constants_of([*own, *hub]), **settings.blocks}
    if part == "forward":
        constants["KEEP"] = True
    kernel = KERNELS[part]
    types = {"PHI": "*fp32", "LSE": "*fp32", "DELTA": "*fp32", "H": "i32"}
    arguments = [name for name in kernel.arg_names if name not in constants]
    lengths = f"L={rows}" + (f" S_hub={hub_keys}" if hub_keys != rows else "")
    return Specialization(
        f"{part} {dtype} {lengths} H={heads} D={width}",
        kernel,
        {name: types.get(name, f"*{dtype}") for name in arguments},
        constants,
        settings,
        matrix=dtype == "fp16",
        principal=principal,
    )
