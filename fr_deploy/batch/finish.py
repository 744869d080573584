"""The last stage of a run: paste the restored faces back, encode, write what is to be committed."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr_deploy.batch.item import Record
from fr_deploy.batch.part_files import remove_parts, write_part
from fr_deploy.batch.pictures import MAX_PICTURED
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.prepare import Laps, one_thread
from fr_deploy.batch.work import Finish, Finished, Prepared, Restored

if TYPE_CHECKING:
    from fr_deploy.photo import Photo


@dataclass
class FinishStage:
    """Finish -> Finished, by the second half of `restore_photo` and the rules of `write_photo`."""

    plan: Plan
    pace: Pace
    _pictured: int = field(default=0, init=False, repr=False)

    def setup(self) -> None:
        """Import what pastes and encodes."""
        one_thread(torch=not self.plan.options.aligned)

    def __call__(self, task: Finish) -> Finished:
        """Finish one photo; its pixels are written to.

        Raises:
            ImageError: it does not fit into the output's format.
            ResourceError: the disk is full or cannot be written; no part of this photo is left.
        """
        prepared, restored = task.prepared, task.restored
        clock = Laps(prepared.ms)
        if len(restored.crops):
            clock.ms["restore"] = round(restored.ms, 3)
        done = Finished(self._record(prepared, restored), [])
        try:
            for place, photo in self._results(done, prepared, restored):
                clock.lap("paste")
                self._write(done, place, photo, clock)
        except BaseException:
            remove_parts(done.parts)
            raise
        done.record.ms = clock.ms
        return done

    def _record(self, prepared: Prepared, restored: Restored) -> Record:
        item, photo = prepared.item, prepared.photo
        copied = self.plan.copy_faceless and not self.plan.only_faces
        height, width, _ = photo.rgb.shape
        return Record(
            item.index,
            item.id,
            item.name,
            "restored" if len(restored.crops) else "copied" if copied else "no_face",
            in_sha256=prepared.in_sha256,
            width=width,
            height=height,
            faces=face_rows(prepared, restored),
            warnings=list(photo.warnings),
        )

    def _results(
        self, done: Finished, prepared: Prepared, restored: Restored
    ) -> "Iterator[tuple[str, Photo]]":
        """Each photo to be written, and where it goes."""
        from fr_deploy.batch.thumbs import Before
        from fr_deploy.photo import Photo
        from fr_deploy.pipeline import FoundFaces, apply_faces

        photo, crops = prepared.photo, prepared.crops
        pictures = Before(photo.rgb, crops) if self._wants_pictures(restored) else None
        if self.plan.only_faces:
            for i, crop in enumerate(restored.crops):
                yield face_place(prepared.item.output, i), Photo(crop, photo.format)
        elif done.record.status != "no_face":
            found = FoundFaces(tuple(prepared.faces), crops, tuple(prepared.matrices))
            result = apply_faces(photo.rgb, found, restored.crops, self.plan.options, in_place=True)
            if pictures:
                done.pictures.append(pictures.photo(result.rgb))
            yield prepared.item.output, photo.with_rgb(result.rgb)
        if pictures and not self.plan.options.aligned:
            done.pictures.append(pictures.face(restored.crops))

    def _wants_pictures(self, restored: Restored) -> bool:
        if not self.pace.pictures or not len(restored.crops) or self._pictured >= MAX_PICTURED:
            return False
        self._pictured += 1
        return True

    def _write(self, done: Finished, place: str, photo: "Photo", clock: Laps) -> None:
        from fr_deploy.images import encode_photo, format_of

        data = io.BytesIO()
        codes = encode_photo(data, format_of(place), photo, quality=self.plan.quality)
        clock.lap("encode")
        folder, index = self.pace.part_folder, done.record.index
        part, output = write_part(folder, index, place, data.getvalue())
        done.parts.append(part)
        done.record.outputs.append(output)
        done.record.warnings += [c for c in codes if c not in done.record.warnings]
        clock.lap("write")


def face_place(output: str, index: int) -> str:
    """Where the crop of a face goes if only faces are wanted: `a.jpg` gives `a-face0.jpg`."""
    from fr_deploy.restore_files import face_path

    return str(face_path(Path(output), index))


def face_rows(prepared: Prepared, restored: Restored) -> list[dict[str, Any]]:
    """What the ledger says of each face; of an aligned photo only what was measured."""
    from fr_deploy.restore_files import face_json

    rows = [face_json(face) for face in prepared.faces]
    if restored.angles is None:
        return rows
    rows = rows or [{} for _ in restored.angles]
    for i, row in enumerate(rows):
        row["angle"] = round(restored.angles[i], 2)
        if restored.kept is not None and restored.blends is not None:
            row |= {"blend": restored.blends[i], "angle_kept": round(restored.kept[i], 2)}
    return rows
