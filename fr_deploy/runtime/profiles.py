"""Which batch a number of faces is run as: engines take the ranges and buckets they were built for, and no other."""

from collections.abc import Sequence

from fr_deploy.manifest import Batches


def padded(faces: int, batches: Sequence[Batches]) -> int:
    """The smallest batch that holds `faces` and is taken: `faces` itself, or a range's least.

    Args:
        faces: at least 1, at most the largest batch taken.
        batches: as in the manifest.
    """
    return min(max(b.least, faces) for b in batches if b.most >= faces)


def profile(batch: int, batches: Sequence[Batches]) -> int:
    """The index of the range to run a batch in: of those that take it, the one tuned nearest to it.

    Args:
        batch: as `padded` returns it.
        batches: as in the manifest, in the engine's order.
    """
    taking = [i for i, b in enumerate(batches) if b.least <= batch <= b.most]
    return min(taking, key=lambda index: abs(batches[index].best - batch))
