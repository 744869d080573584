"""The training recipe of each preset and stage, as one table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One stage of one preset. Progress is counted in images (crops seen)."""

    preset: str
    stage: str
    images: int
    batch: int
    crop: int
    crops_per_face: int
    """Crops cut from one degraded 512 px face: degrading costs more than a small crop's training step."""
    lr: float
    perceptual: float
    """Weight of lpips_hed, computed on a random window of `window` px of each crop."""
    window: int
    adversarial: float
    identity: float = 0.0
    """Weight of the identity loss; needs whole 512 px faces."""
    levels: tuple[tuple[str, float, float], ...] = (
        ("mild", 0.3, 1.0),
        ("vqfr-v1", 0.35, 1.0),
        ("vqfr-v2", 0.35, 1.0),
    )
    """Degradations, how often each is drawn, and the factor of `perceptual` on its faces."""
    recolour: float = 0.0
    """Share of faces whose R, G and B are permuted: an autoencoder that saw only skin tones loses other colours."""
    ema: float = 0.998
    warmup: int = 1000


WHOLE_FACE_LEVELS = (("mild", 0.3, 1.0), ("vqfr-v1", 0.25, 1.0), ("vqfr-v2", 0.45, 1.0))
# Heavy damage has decibels to spare and lpips_hed to gain; at vqfr-v1 it is the other way round.
FINISH_LEVELS = (("mild", 0.4, 1.6), ("vqfr-v1", 0.18, 0.55), ("vqfr-v2", 0.42, 2.2))

# fmt: off
RECIPES = {(r.preset, r.stage): r for r in (
    #      preset       stage       images  batch crop k  lr    percep win adv    identity levels
    Recipe("lafr-mini", "vae",      24_000, 8,    128, 1, 1e-3, 0.3,  64,  0.0,  recolour=0.3),
    Recipe("lafr-mini", "adapter",   4_000, 8,    256, 2, 1e-3, 0.0,  0,   0.0),
    Recipe("lafr-mini", "restorer", 14_000, 4,    256, 2, 5e-4, 0.5,  96,  0.0),
    Recipe("lafr-mini", "polish",    1_600, 1,    512, 1, 1e-4, 0.7,  192, 0.005, 1.0, WHOLE_FACE_LEVELS, ema=0.99, warmup=20),
    Recipe("lafr-mini", "finish",    6_000, 2,    512, 1, 3e-4, 1.5,  256, 0.0,   1.5, FINISH_LEVELS, recolour=0.1, ema=0.995, warmup=200),
    Recipe("lafr-toy",  "vae",          64, 4,    64,  1, 1e-3, 0.0,  0,   0.0,  warmup=8),
    Recipe("lafr-toy",  "adapter",      64, 4,    64,  1, 1e-3, 0.0,  0,   0.0,  warmup=8),
    Recipe("lafr-toy",  "restorer",     64, 4,    64,  1, 1e-3, 0.0,  0,   0.02, warmup=8),
    Recipe("lafr-toy",  "polish",       16, 1,    64,  1, 1e-4, 0.0,  0,   0.02, warmup=2),
    Recipe("lafr-toy",  "finish",       16, 1,    64,  1, 1e-4, 0.0,  0,   0.0,  warmup=2),
)}
# fmt: on
