"""Training the projector from a frozen tokenizer's tokens into a frozen language model.

The language model reads the projected tokens of a clip and learns nothing; the projector is trained
so that it continues with the clip's caption. `evaluation.models.projector` loads the result for
question answering.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.data.pipeline import make_loader
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.models.answering import DESCRIPTION, FORMAT, make_projector
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_json
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.projector import Projector
from pyratok_jax.models.pyratok.lfq import ids_to_bits
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer, to_model_range
from pyratok_jax.training.loop.contracts import DeviceBatch, LossAndTerms, Progress, ShareOf
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.run_record import refuse_another_owner
from pyratok_jax.training.tasks.clip_batches import ClipBatches, pipeline_batches


class ProjectorSystem(nnx.Module):
    """Frozen tokenizer, its code embedding and language model, and the projector."""

    def __init__(
        self,
        tokenizer: PyraTok,
        alignment: Alignment,
        language_model: LanguageModel,
        projector: Projector,
    ):
        self.tokenizer, self.alignment = tokenizer, alignment
        self.language_model, self.projector = language_model, projector

    def visual(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b n d"]:
        """Projected tokens of a batch of clips in [-1, 1]."""
        ids = self.tokenizer.tokenize(video)
        codes = (ids_to_bits(level, self.tokenizer.config.bits) for level in ids)
        levels = tuple(self.alignment.text_embed(q, i) for i, q in enumerate(codes))
        return self.projector(jax.lax.stop_gradient(levels))


def caption_loss(system: ProjectorSystem, batch: DeviceBatch) -> LossAndTerms:
    """Mean negative log-likelihood of the captions' tokens after the projected clip."""
    visual = system.visual(to_model_range(batch["video"]))
    ids, mask = batch["text_ids"], batch["text_mask"]
    model = system.language_model
    inputs = jnp.concatenate([visual.astype(model.dtype), model.embed(ids[:, :-1])], axis=1)
    real = jnp.ones(visual.shape[:2], bool)
    hidden = model(inputs, jnp.concatenate([real, mask[:, :-1]], axis=1)).hidden
    # The last projected token predicts the first of the caption.
    logits = model.logits(hidden[:, visual.shape[1] - 1 :])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    count = jnp.maximum(mask.sum(), 1)
    hits = (jnp.argmax(logits, axis=-1) == ids) & mask
    loss = jnp.sum(losses * mask) / count
    return loss, {"caption_nll": loss, "token_accuracy": hits.sum() / count}


class ProjectorTask:
    """A `contracts.Task`."""

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer | None = None):
        self.config = config
        self.tokenizer = tokenizer or load_tokenizer(config.tokenizer)
        text = self.tokenizer.text
        if self.tokenizer.alignment is None or text is None:
            raise UserError(
                f"{config.tokenizer} has no language model; a projector needs a tokenizer that "
                "was trained with one"
            )
        self.width = text.language_model.config.width
        self.system = ProjectorSystem(
            self.tokenizer.model,
            self.tokenizer.alignment,
            text.language_model,
            make_projector(self.arguments(), nnx.Rngs(config.seed)),
        )

    def arguments(self) -> dict[str, Json]:
        """Sizes of the projector."""
        return {
            "levels": len(self.tokenizer.config.grids),
            "features": self.width,
            "width": self.width,
            "hidden": int(self.config.projector.hidden),
            "most": [int(n) for n in self.config.projector.most],
        }

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """The projector alone."""
        return name.startswith("projector.")

    def make_loader(self, share_of: ShareOf) -> ClipBatches:
        """The training stream of this process."""
        clips = make_loader(
            self.config.data,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            tokenize=self.tokenizer.captions,
            share_of=share_of,
        )
        return pipeline_batches(clips, ("video", "text_ids", "text_mask"), self.config.batch_size)

    def loss(
        self, system: ProjectorSystem, batch: DeviceBatch, key: PRNGKeyArray, progress: Progress
    ) -> LossAndTerms:
        """See `caption_loss`."""
        return caption_loss(system, batch)


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, AnyPath] | None:
    """Train; None when the training was interrupted (and saved).

    Raises:
        UserError: a mistake in the config, the data or the working folder.
    """
    task = ProjectorTask(config)
    owner = task.tokenizer.checkpoint_hash
    record = {"format": FORMAT, "projector": task.arguments(), "tokenizer": owner}
    refuse_another_owner(workdir / DESCRIPTION, "tokenizer", owner)
    trained = train(
        config, workdir, task, on_accepted=lambda: write_json(workdir / DESCRIPTION, record)
    )
    if not trained.finished:
        return None
    return {"projector": workdir, "checkpoint": workdir / "checkpoints"}
