"""`--sidecar`: a JSON file beside each result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fr_deploy.batch.item import Record
from fr_deploy.batch.part_files import remove_parts, write_part
from fr_deploy.batch.stage import Stage
from fr_deploy.batch.work import Finished

SUFFIX = ".json"
_LEFT_OUT = {"ms", "at", "host", "attempts", "index"}
"""What another start would have otherwise: the same photo gives the same bytes."""


@dataclass
class SidecarStage:
    """The last stage of a run, and one more file for each photo that it wrote: `a.jpg.json`."""

    finish: Stage
    part_folder: Path

    def setup(self) -> None:
        """Set the stage up.

        Raises:
            FrDeployError: as the stage.
        """
        self.finish.setup()

    def __call__(self, task: Any) -> Finished | Record:
        """Finish one photo.

        Raises:
            ImageError, ResourceError: as the stage; the disk is full.
        """
        done = self.finish(task)
        if isinstance(done, Record) or not done.record.outputs:
            return done
        try:
            place = done.record.outputs[0].path + SUFFIX
            data = sidecar_bytes(done.record)
            part, output = write_part(self.part_folder, done.record.index, place, data)
        except BaseException:
            remove_parts(done.parts)
            raise
        done.parts.append(part)
        done.record.outputs.append(output)
        return done


def sidecar_bytes(record: Record) -> bytes:
    """The content of a sidecar: the record, without what only this start knows."""
    values = {name: value for name, value in record.to_json().items() if name not in _LEFT_OUT}
    return (json.dumps(values, indent=2) + "\n").encode()
