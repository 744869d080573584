"""The model sizes, as one table. The classes are the same; only the widths differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Everything that fixes the architecture of one LAFR restorer."""

    name: str
    size: int
    """Side in pixels of the face it restores."""
    patch: int
    """Pixels folded into channels before the VAE (1 = none; ours). 4 lets the VAE work on 1/16 of the pixels."""
    latent_channels: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    vae_attention: bool
    unet_channels: tuple[int, ...]
    unet_attention: tuple[bool, ...]
    """Cross-attention blocks at each level; the middle block always has one."""
    unet_layers: int
    head_dim: int
    prompt_tokens: int
    prompt_dim: int
    timestep: int
    """The one step's t, an index into the 1000-step schedule."""
    adapter_hidden: int
    adapter_blocks: int
    codes: int
    code_dim: int
    adapter_share: float
    """s in z_aligned = (1 - s) z + s M(c*). The paper's adapter is s = 1; less keeps a path around the codebook,
    which a latent of more than 4 channels needs (ours)."""
    groups: int


# fmt: off
PRESETS = {p.name: p for p in (
    #       name         size patch lat  vae_channels          l  attn   unet_channels           unet_attention               l  head tok  dim   t    hid  b codes dim  share  groups
    Preset("lafr-sd21",  512, 1,    4,  (128, 256, 512, 512),  2, True,  (320, 640, 1280, 1280), (True, True, True, False),   2, 64,  77, 1024, 999, 256, 2, 1024, 256, 1.0,   32),
    Preset("lafr-mini",  512, 4,    24, (64, 128),             1, False, (96, 96, 128),          (False, False, False),       1, 32,  8,  64,   199, 64,  1, 1024, 64,  0.5,   16),
    # Seconds on a CPU; for tests of everything that does not need a trained model.
    Preset("lafr-toy",   64,  2,    4,  (16, 32),              1, True,  (16, 32),               (True, False),               1, 8,   4,  16,   399, 16,  1, 32,   8,   1.0,   8),
)}
# fmt: on
