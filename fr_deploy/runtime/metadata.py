"""What an exported graph says of itself; the exporters write it, the backends read it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fr_deploy.errors import ModelError

PREFIX = "fr_deploy."


@dataclass(frozen=True)
class GraphMetadata:
    """Text by field; in the file each name has `fr_deploy.` before it."""

    version: str
    """Of fr-deploy."""
    preset: str
    dtype: str
    """Of the weights: "float32" or "float16"."""
    part: str
    """"whole", or one of the graph's four parts."""
    graph: str
    """SHA-256 of the preset and all weights of the part, in hexadecimal."""
    opset: str
    torch: str
    onnxscript: str

    def to_props(self) -> dict[str, str]:
        """By the names in the file."""
        return {PREFIX + name: value for name, value in asdict(self).items()}

    @staticmethod
    def of_props(props: Mapping[str, str], path: Path) -> "GraphMetadata":
        """Read what `to_props` wrote; other entries are left alone.

        Raises:
            ModelError: a field is missing, so `fr-deploy export` did not write the file.
        """
        for field in fields(GraphMetadata):
            if PREFIX + field.name not in props:
                raise ModelError(
                    f"{path} has no metadata field {PREFIX + field.name!r}, so it is no export of this program; "
                    "make one with: fr-deploy export MODEL -o DIR"
                )
        return GraphMetadata(**{f.name: props[PREFIX + f.name] for f in fields(GraphMetadata)})
