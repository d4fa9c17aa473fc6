"""What trainings on phases of built-in clips share (the demo's own small networks)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pyratok_jax.data.arrays import PhasedClips
from pyratok_jax.errors import UserError


class PhasedTask:
    """The data half of a `loop.Task`; `config.data` has phases and clips, see `PhasedClips`."""

    config: ConfigDict

    def make_loader(self, index: int, count: int) -> PhasedClips:
        """The stream of batches.

        Raises:
            UserError: for a part of several; the clips are not shared out over hosts.
        """
        if count > 1:
            raise UserError(f"config.task {self.config.task} trains in one process, not in {count}")
        data = self.config.data
        return PhasedClips(
            data.phases,
            data.clips.to_dict(),
            self.config.seed,
            shares=data.get("shares", {}),
            augment=data.get("augment", {}),
            photos=data.get("photos", ""),
        )

    def device_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of a batch, the arrays that the step reads."""
        return {"video": batch["video"]}
