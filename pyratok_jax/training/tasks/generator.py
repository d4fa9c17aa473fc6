"""Training a prior on a dataset of tokens: the `Run` of `config.task` "generator".

The tokenizer is frozen: of it the training needs the sizes, the language model that embeds the
captions, and for the order "blocks" the synthesis of the latent from codes.
"""

import contextlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.pretrained import load_language
from pyratok_jax.checkpoints.working_folder import newest_step
from pyratok_jax.data.caption_embeddings import StoredCaptions
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.errors import UserError
from pyratok_jax.generator.loading import (
    DESCRIPTION,
    FrozenText,
    GeneratorDescription,
    generator_folder,
    read_description,
    write_description,
)
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer
from pyratok_jax.tokens.dataset import TokenDataset
from pyratok_jax.tokens.schema import DamagedRecordError, Grids
from pyratok_jax.tokens.sequence_loader import Reading, SequenceLoader, make_sequence_loader
from pyratok_jax.training.generator_system import (
    GeneratorSystem,
    batch_loss,
    is_trainable,
    prior_sizes,
)
from pyratok_jax.training.init.previous_stage import report_handover, start_from
from pyratok_jax.training.loop.contracts import (
    Batch,
    DeviceBatch,
    LossAndTerms,
    Progress,
    ShareOf,
)
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.run_record import refuse_another_owner
from pyratok_jax.training.tasks.clip_batches import StreamLoader


class TokenBatches(StreamLoader):
    """A `contracts.Loader`: levels of tokens by name, with what the captions became."""

    def __init__(self, sequences: SequenceLoader, names: tuple[str, ...]):
        super().__init__(sequences)
        self._sequences, self._names = sequences, names

    def __next__(self) -> Batch:
        """The next batch: `level_1`, ... int32 (b, t, h, w); of flipped data also `read_1`, ..."""
        batch = next(self._sequences)
        arrays = _by_level("level", batch.sequences, batch.grids)
        if batch.read is not None:
            arrays |= _by_level("read", batch.read, batch.grids)
        arrays |= {name: batch.arrays[name] for name in self._names}
        return Batch(arrays, batch.rows, batch.bucket)


def _by_level(name: str, sequences: Int[np.ndarray, "b n"], grids: Grids) -> dict[str, np.ndarray]:
    arrays, start = {}, 1
    for number, grid in enumerate(grids, start=1):
        count = int(np.prod(grid))
        ids = sequences[:, start : start + count]
        arrays[f"{name}_{number}"] = ids.astype(np.int32).reshape(-1, *grid)
        start += count + 1  # Each level is preceded by a mark.
    return arrays


class GeneratorTask:
    """A `contracts.Task`."""

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer | None = None):
        """Load the frozen parts and build a fresh prior.

        Args:
            config: see `config.generator_training_config`.
            tokenizer: in place of that of `config.tokenizer`.

        Raises:
            UserError: an impossible setting, or tokens of another tokenizer.
        """
        self.config = config
        if not config.tokens.path:
            raise UserError("config.tokens.path is empty; name the --output of export_tokens")
        if tokenizer is None and not config.tokenizer:
            raise UserError("config.tokenizer is empty; name the tokenizer's --workdir")
        self.tokenizer = tokenizer or load_tokenizer(config.tokenizer)
        self.dataset = TokenDataset(config.tokens.path)
        check_tokens(self.dataset, self.tokenizer)
        text, self.captions, self.said = self._language()
        self.stored = self._stored_captions(text)
        width = 1 if text is None else text.width
        self.sizes = prior_sizes(config, self.tokenizer.config, width)
        try:
            self.objective = PriorObjective(**config.objective)
            self.sampling = Sampling.from_dict(config.sampling.to_dict())
        except (TypeError, ValueError) as error:
            raise UserError(f"config: {error}") from error
        if self.objective.flip and self.dataset[0].read:
            raise UserError(
                f"config.objective.flip is {self.objective.flip}, and bits of {config.tokens.path} "
                "were flipped already (export_tokens --flip); set it to 0"
            )
        quantizer = self.tokenizer.model.quantizer if self.sizes.order == "blocks" else None
        if quantizer is not None and not quantizer.streams:
            raise UserError(
                "config.model.order blocks needs a tokenizer whose quantiser streams; take "
                "raster or masked"
            )
        prior = Prior(self.sizes, rngs=nnx.Rngs(config.seed), dtype=jnp.dtype(config.dtype))
        # Stored embeddings take the place of the language model, which is then not held.
        self.system = GeneratorSystem(prior, None if self.stored else text, quantizer)

    def _language(self) -> tuple[TextEncoder | None, CaptionTokenizer | None, FrozenText | None]:
        """The text encoder, its word tokenizer, and how a description names them."""
        chosen = self.config.conditioning
        if chosen.kind != "text":
            return None, None, None
        if chosen.language:
            language = load_language(chosen.language)
            captions = CaptionTokenizer(language.tokenizer, chosen.length or 64)
            said = FrozenText(chosen.language, language.sha256, captions.length)
            return TextEncoder(language.model), captions, said
        text, words = self.tokenizer.text, self.tokenizer.captions
        if text is None or words is None:
            raise UserError(
                "the tokenizer has no language model; name one as config.conditioning.language, "
                "or set config.conditioning.kind to classes or none"
            )
        captions = CaptionTokenizer(words.tokenizer, chosen.length or words.length)
        return text, captions, FrozenText("", "", captions.length)

    def _stored_captions(self, text: TextEncoder | None) -> StoredCaptions | None:
        """The folder of `conditioning.stored`, after a comparison with the language model.

        Raises:
            UserError: no such folder, no text to store, or embeddings of another model or length.
        """
        folder = self.config.conditioning.stored
        if not folder:
            return None
        if text is None or self.captions is None:
            raise UserError("config.conditioning.stored needs conditioning.kind text")
        stored = StoredCaptions(folder)
        again = f"make it with embed_captions --tokens {self.dataset.path} --checkpoint TOKENIZER"
        if (stored.width, stored.length) != (text.width, self.captions.length):
            raise UserError(
                f"config.conditioning.stored {folder} holds {stored.length} tokens of width "
                f"{stored.width}, not {self.captions.length} of {text.width}; {again}"
            )
        caption = _first_caption(self.dataset)
        if caption:
            made = text(*map(jnp.asarray, self.captions([caption])))
            values, mask = stored([caption])
            real = np.asarray(made.embeddings, np.float32)[mask]
            if not mask.any() or np.abs(real - values[mask]).max() > 0.01 * np.abs(real).max():
                raise UserError(
                    f"config.conditioning.stored {folder} holds other embeddings of {caption!r} "
                    f"than the language model makes; {again}"
                )
        return stored

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """The prior alone."""
        return is_trainable(name, variable)

    def make_loader(self, share_of: ShareOf) -> TokenBatches:
        """The training stream of this process."""
        return self._loader(self.dataset, share_of, self.config.conditioning.drop)

    def heldout_loader(self, path: str, share_of: ShareOf) -> TokenBatches:
        """The batches of another dataset, captions never left out.

        Raises:
            UserError: no such dataset, one of another tokenizer, or one with flipped bits.
        """
        dataset = TokenDataset(path)
        check_tokens(dataset, self.tokenizer)
        if dataset[0].read:
            raise UserError(f"{path}: held-out tokens are exported without --flip")
        return self._loader(dataset, share_of, 0.0)

    def _loader(self, dataset: TokenDataset, share_of: ShareOf, drop: float) -> TokenBatches:
        kind, tokens = self.config.conditioning.kind, self.config.tokens
        classes = {name: i for i, name in enumerate(self.config.conditioning.classes)}
        sequences = make_sequence_loader(
            dataset,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            tokenize=None if self.stored else self.captions,
            embed=self.stored,
            classes=classes if kind == "classes" else None,
            caption_dropout=drop,
            share_of=share_of,
            reading=Reading(tokens.threads, tokens.workers, tokens.ahead),
        )
        text = "text_embeddings" if self.stored else "text_ids"
        names = {"text": (text, "text_mask"), "classes": ("classes",), "none": ()}
        return TokenBatches(sequences, names[kind])

    def loss(
        self, system: GeneratorSystem, batch: DeviceBatch, key: PRNGKeyArray, progress: Progress
    ) -> LossAndTerms:
        """See `losses.prior.prior_loss`."""
        return batch_loss(system, batch, key, self.objective)

    def measure(
        self, system: GeneratorSystem, batch: DeviceBatch, key: PRNGKeyArray
    ) -> Mapping[str, Array]:
        """The terms without flips and tasks."""
        return batch_loss(system, batch, key, PriorObjective())[1]

    def describe(self, workdir: AnyPath) -> None:
        """Write `generator.json`, which `load_generator` reads beside the checkpoints."""
        record = self.dataset[0]
        folder = self.tokenizer.folder
        write_description(
            workdir,
            GeneratorDescription(
                prior=self.sizes.to_dict(),
                tokenizer=str(folder.resolve()) if folder else self.config.tokenizer,
                tokenizer_hash=self.tokenizer.checkpoint_hash,
                language=self.said,
                classes=tuple(self.config.conditioning.classes),
                sampling=self.config.sampling.to_dict(),
                size=(record.padded_frames, record.padded_height, record.padded_width),
                fps=float(record.fps),
                dtype=self.config.dtype,
                captioned=bool(record.text_encoder),
            ),
        )


def _first_caption(dataset: TokenDataset) -> str:
    """A caption among the first records, as `StoredCaptions` has it; "" where they have none."""
    for number in range(min(len(dataset), 64)):
        with contextlib.suppress(DamagedRecordError):
            if caption := dataset[number].caption.strip():
                return caption
    return ""


def check_tokens(dataset: TokenDataset, tokenizer: Tokenizer) -> None:
    """Refuse a dataset that another tokenizer made.

    Raises:
        UserError: another checkpoint, or codes that are not all valid.
    """
    record, config = dataset[0], tokenizer.config
    if record.checkpoint != tokenizer.checkpoint_hash:
        raise UserError(
            f"{dataset.path} holds tokens of another tokenizer ({record.checkpoint[:12]}, not "
            f"{tokenizer.checkpoint_hash[:12]}); export them again, or name the tokenizer that "
            "made them"
        )
    if config.vocabulary_size != 2**config.bits:
        raise UserError(
            f"the tokenizer has {config.vocabulary_size} of {2**config.bits} codes; priors take "
            "tokenizers of which all codes are valid"
        )


def _refuse_another_language(workdir: AnyPath, said: FrozenText | None) -> None:
    """Refuse to resume with other weights of the language model than the run began with."""
    if newest_step(workdir) is None or not (workdir / DESCRIPTION).exists():
        return
    before = read_description(workdir).language
    if before and said and before.sha256 != said.sha256:
        raise UserError(
            f"{workdir} was trained with other weights of the language model (SHA-256 "
            f"{before.sha256[:16]}, now {said.sha256[:16]}); give it those, or name another "
            "--workdir"
        )


def _refuse_other_classes(config: ConfigDict) -> None:
    """Refuse a start whose rows of the table of classes are of other classes."""
    before = read_description(generator_folder(config.init_from)).classes
    classes = tuple(config.conditioning.classes)
    if before and classes and before != classes:
        raise UserError(
            f"config.conditioning.classes are not those of config.init_from {config.init_from}, in "
            "whose order its table of classes is; name the same classes in the same order"
        )


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, AnyPath] | None:
    """Train; None when the training was interrupted (and saved).

    Raises:
        UserError: a mistake in the config, the data or the working folder.
    """
    task = GeneratorTask(config)
    owner = task.tokenizer.checkpoint_hash
    refuse_another_owner(workdir / DESCRIPTION, "tokenizer_hash", owner)
    _refuse_another_language(workdir, task.said)

    def start(partition: Partition) -> None:
        if config.init_from:
            _refuse_other_classes(config)
            taken = start_from(config.init_from, partition, locate=generator_folder)
            report_handover(config.init_from, taken)

    trained = train(
        config, workdir, task, on_start=start, on_accepted=lambda: task.describe(workdir)
    )
    if not trained.finished:
        return None
    return {"generator": workdir, "checkpoint": workdir / "checkpoints"}
