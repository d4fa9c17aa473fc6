"""The data of trainings on phases of built-in clips (the demo's own small networks)."""

from ml_collections import ConfigDict

from pyratok_jax.demo.clips import PhasedClips
from pyratok_jax.errors import UserError
from pyratok_jax.training.loop.contracts import ShareOf
from pyratok_jax.training.tasks.clip_batches import ClipBatches


class PhasedTask:
    """The data half of a `contracts.Task`; `config.data` has phases and clips (`PhasedClips`)."""

    config: ConfigDict

    def clips(self) -> PhasedClips:
        """All clips of every batch."""
        data = self.config.data
        return PhasedClips(
            data.phases,
            data.clips.to_dict(),
            self.config.seed,
            shares=data.get("shares", {}),
            augment=data.get("augment", {}),
            photos=data.get("photos", ""),
        )

    def make_loader(self, share_of: ShareOf) -> ClipBatches:
        """The stream of batches.

        Raises:
            UserError: for a shard of several; the clips are not shared out over processes.
        """
        count = share_of(self.config.batch_size).shard_count
        if count > 1:
            raise UserError(f"config.task {self.config.task} trains in one process, not in {count}")
        return ClipBatches(self.clips(), ("video",))
