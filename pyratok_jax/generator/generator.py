"""`Generator`: a prior, its text encoder and its tokenizer, on arrays of the host."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, UInt8

from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.data.padding import Padding
from pyratok_jax.errors import UserError
from pyratok_jax.generator.drawing import Drawing, codes_of, ids_of
from pyratok_jax.generator.ranking import check_ranking, says_prompt
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.sampling import Given, row_keys, stacked
from pyratok_jax.models.prior.tasks import TaskName, given_groups, given_tokens
from pyratok_jax.models.pyratok.lfq import bits_to_ids
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer import EncodedClip, Tokenizer

Progress = Callable[[float], None]
MAX_SIDE, MAX_FRAMES = 1 << 13, 1 << 16
Video = UInt8[np.ndarray, "t h w 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is to be generated.

    Attributes:
        prompts: a sample each; "" is no prompt. Names of classes for a class-conditional prior.
        frames, height, width: of every clip; any size, drawn at the next one that tokens have. 0:
            that of the training's clips.
        seed: of all samples.
        first: number of the first sample: sample n of a seed is the same in any batch.
        negative: what guidance leads away from; "": the null that a share of the training had.
        video: frames that are given, of any length, and of the clip's size: a picture to begin
            with, a video to continue; for "interpolation", "inpainting" and "outpainting" the clip
            whose region is kept.
        task: which part of `video` is kept; "prediction" keeps all frames that it has.
        candidates: draws of each sample, of which the one is kept whose tokens say the prompt best
            (`ranking`). The first of them is what is drawn where there is 1.
    """

    prompts: Sequence[str]
    frames: int = 0
    height: int = 0
    width: int = 0
    seed: int = 0
    first: int = 0
    negative: str = ""
    video: Video | None = None
    task: TaskName = "prediction"
    candidates: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """One sample.

    Attributes:
        prompt: that it was drawn for.
        number: of the sample within its seed.
        seed: of the request.
        encoded: its tokens, and how what they decode to is cropped.
        candidate: which of the sample's draws it is.
        likeness: of its tokens to the prompt (`ranking.says_prompt`); None where it is the only
            draw.
    """

    prompt: str
    number: int
    seed: int
    encoded: EncodedClip
    candidate: int = 0
    likeness: float | None = None


class Generator:
    """Prompts to tokens, and tokens to video."""

    def __init__(
        self,
        prior: Prior,
        tokenizer: Tokenizer,
        *,
        text: TextEncoder | None = None,
        captions: CaptionTokenizer | None = None,
        classes: Sequence[str] = (),
        sampling: Sampling = Sampling(),
        size: tuple[int, int, int] = (17, 256, 256),
        fps: float = 24.0,
        captioned: bool = True,
        checkpoint_hash: str = "",
    ):
        """Put the parts together.

        Args:
            prior: trained on tokens of `tokenizer`.
            tokenizer: decodes.
            text: embeds prompts, for a prior with text.
            captions: its word tokenizer.
            classes: names in the order of the prior's classes.
            sampling: the defaults.
            size: (frames, height, width) where a request names none.
            fps: frames per second of what the prior was trained on.
            captioned: whether the clips it was trained on were encoded under their captions.
            checkpoint_hash: identifies all weights.
        """
        self.prior, self.tokenizer = prior, tokenizer
        self.text, self.captions, self.classes = text, captions, tuple(classes)
        self.sampling, self.size, self.fps = sampling, size, fps
        self.captioned, self.checkpoint_hash = captioned, checkpoint_hash
        self._embed = None if text is None else nnx.jit(lambda text, ids, mask: text(ids, mask))

    def padding(self, request: Request) -> Padding:
        """The size of a request's clips, and the one that they are drawn at.

        Raises:
            UserError: an impossible size.
        """
        size = (request.frames, request.height, request.width)
        frames, height, width = (a or b for a, b in zip(size, self.size, strict=True))
        if min(size) < 0 or frames > MAX_FRAMES or max(height, width) > MAX_SIDE:
            raise UserError(
                f"a clip of {frames} frames of {height}x{width} cannot be generated; give 1 to "
                f"{MAX_FRAMES} frames of sides up to {MAX_SIDE}"
            )
        return self.tokenizer.padding(frames, height, width)

    def layout(self, padding: Padding) -> Layout:
        """The tokens of clips of that size."""
        size = padding.padded_frames, padding.padded_height, padding.padded_width
        grids = self.tokenizer.model.grid_shapes(*size)
        sizes = self.prior.config
        return Layout(grids, sizes.strides, sizes.latent_stride)

    def generate(
        self,
        prompts: str | Sequence[str] = "",
        *,
        sampling: Sampling | None = None,
        batch: int = 4,
        progress: Progress | None = None,
        **request: object,
    ) -> list[Clip]:
        """Draw a clip for each prompt; `decode` shows it.

        Args:
            prompts: one or several.
            sampling: None takes the defaults of the training.
            batch: clips drawn at once; it changes no sample.
            progress: called with the number of prompts done so far, in fractions.
            request: the other fields of `Request`.

        Raises:
            UserError: an impossible request.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        asked = Request(texts, **request)  # type: ignore[arg-type]
        found: list[Clip] = []
        for part in self.batches(asked, sampling or self.sampling, batch, progress):
            found += part
        return found

    def batches(
        self,
        request: Request,
        sampling: Sampling,
        batch: int = 4,
        progress: Progress | None = None,
    ) -> Iterator[list[Clip]]:
        """`generate`, batch by batch."""
        if not request.prompts:
            raise UserError("there is no prompt; give at least one, which may be empty")
        for name, value in (("batch", batch), ("candidates", request.candidates)):
            if value < 1:
                raise UserError(f"--{name} {value}: expected at least 1")
        draws = self._draws(request, sampling, batch, progress)
        if request.candidates == 1:
            yield from draws
            return
        check_ranking(self.tokenizer, request.prompts)
        held: list[Clip] = []
        for part in draws:
            held += part
            whole = len(held) - len(held) % request.candidates
            if whole:
                yield self._best(held[:whole], request.candidates)
            held = held[whole:]

    def _best(self, draws: Sequence[Clip], candidates: int) -> list[Clip]:
        """Of each sample's draws, one after the other, that which says the prompt best."""
        levels = zip(*(clip.encoded.ids for clip in draws), strict=True)
        ids = [np.stack(level) for level in levels]
        likeness = says_prompt(self.tokenizer, ids, [clip.prompt for clip in draws])
        best = likeness.reshape(-1, candidates).argmax(axis=1) + np.arange(
            0, len(draws), candidates
        )
        return [dataclasses.replace(draws[n], likeness=float(likeness[n])) for n in best]

    def _draws(
        self, request: Request, sampling: Sampling, batch: int, progress: Progress | None
    ) -> Iterator[list[Clip]]:
        """All draws of all samples, those of a sample one after the other, batch by batch."""
        padding = self.padding(request)
        layout = self.layout(padding)
        count, each = len(request.prompts) * request.candidates, request.candidates
        rows = min(batch, count)
        drawing = Drawing(self.prior, self.tokenizer.model.quantizer, layout, sampling)
        given: Given | None = None
        for start in range(0, count, rows):
            # One batch size, so that one program draws all; the filling is thrown away.
            samples, tries = np.divmod(start + np.arange(rows), each)
            texts = [request.prompts[n] for n in samples if n < len(request.prompts)]
            filled = texts + [""] * (rows - len(texts))
            condition = self.condition(filled, request.negative, sampling.guided)
            if start == 0 or self.captioned:
                given = self._given(request, padding, layout, filled)
            codes = drawing.run(
                condition,
                row_keys(request.seed, request.first + samples, tries),
                given,
                _scaled(progress, start / each, len(texts) / each),
            )
            ids = ids_of(codes, layout)
            yield [
                Clip(
                    text,
                    int(request.first + samples[row]),
                    request.seed,
                    EncodedClip(
                        tuple(level[row] for level in ids), padding, self.prior.config.bits
                    ),
                    int(tries[row]),
                )
                for row, text in enumerate(texts)
            ]

    def decode(self, clip: Clip) -> Video:
        """The video of a sample."""
        return self.tokenizer.decode(clip.encoded)

    def stream(
        self, prompt: str, sampling: Sampling | None = None, **request: object
    ) -> Iterator[Video]:
        """Draw one clip and decode it latent frame by latent frame, as it is drawn.

        Args:
            prompt: of the clip.
            sampling: None takes the defaults of the training.
            request: the other fields of `Request`.

        Yields:
            consecutive frames. Any number of them takes the memory of a few, with a window.

        Raises:
            UserError: an order or a tokenizer that does not stream, or candidates.
        """
        if request.get("candidates", 1) != 1:
            raise UserError("--stream shows frames as they are drawn: leave --candidates at 1")
        if self.prior.config.order != "blocks" or not self.tokenizer.model.streams:
            raise UserError("only a prior of order blocks and a tokenizer that streams can stream")
        asked = Request([prompt], **request)  # type: ignore[arg-type]
        chosen, padding = sampling or self.sampling, self.padding(asked)
        layout = self.layout(padding)
        drawing = Drawing(self.prior, self.tokenizer.model.quantizer, layout, chosen)
        condition = self.condition([prompt], asked.negative, chosen.guided)
        keys = row_keys(asked.seed, np.array([asked.first]))
        caches, left = None, padding.frames
        given = self._given(asked, padding, layout, [prompt])
        for codes in drawing.groups(condition, keys, given):
            ids = tuple(np.asarray(bits_to_ids(level)) for level in codes)
            frames, caches = self.tokenizer.decode_next(ids, caches)
            yield frames[0, :left, : padding.height, : padding.width]
            left -= frames.shape[1]

    def condition(self, prompts: Sequence[str], negative: str, guided: bool) -> Condition:
        """The condition of a batch, with the unconditional rows behind it if `guided`."""
        condition = self._condition(prompts)
        if not guided:
            return condition
        return stacked(condition, self._condition([negative] * len(prompts)))

    def _condition(self, prompts: Sequence[str]) -> Condition:
        kind, rows = self.prior.config.condition, len(prompts)
        if kind == "classes":
            return Condition(rows, classes=self._classes(prompts))
        if kind == "none" or self.captions is None or self._embed is None:
            return Condition(rows)
        ids, mask = self.captions([prompt or None for prompt in prompts])
        if not mask.any():
            assert self.text is not None
            nothing = jnp.zeros((*ids.shape, self.text.width), jnp.float32)
            return Condition(rows, TextCondition(nothing, jnp.asarray(mask)))
        text = self._embed(self.text, jnp.asarray(ids), jnp.asarray(mask))
        return Condition(rows, text._replace(embeddings=text.embeddings.astype(jnp.float32)))

    def _classes(self, prompts: Sequence[str]) -> Int[Array, " b"]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        unknown = [prompt for prompt in prompts if prompt and prompt not in numbers]
        if unknown:
            known = ", ".join(self.classes[:8]) + (", ..." if len(self.classes) > 8 else "")
            raise UserError(f"{unknown[0]!r} is no class of this generator; it has {known}")
        return jnp.asarray([numbers.get(prompt, -1) for prompt in prompts], jnp.int32)

    def kept_frames(self, request: Request) -> int | None:
        """Given frames that the clip begins with: those of whole latent frames.

        None for tasks other than prediction, which keep regions.
        """
        if request.task != "prediction":
            return None
        if request.video is None:
            return 0
        time = self.prior.config.latent_stride[0]
        return 1 + (len(request.video) - 1) // time * time

    def _check_given(self, request: Request, padding: Padding, video: Video) -> None:
        """Refuse frames that cannot be given.

        Raises:
            UserError: too few frames, too many, or a task that the prior has no masks for.
        """
        order = self.prior.config.order
        if request.task != "prediction" and order != "masked":
            raise UserError(f"--task {request.task} needs a prior of order masked, this is {order}")
        if video.shape[1:3] != (padding.height, padding.width):
            raise UserError(
                f"the given frames are {video.shape[1]}x{video.shape[2]}, the clip is "
                f"{padding.height}x{padding.width}"
            )
        if len(video) >= padding.frames and request.task == "prediction":
            raise UserError(
                f"{len(video)} frames are given and {padding.frames} asked for: nothing is left "
                "to draw; give more --frames, or fewer --keep-frames"
            )
        if request.task != "prediction" and len(video) < padding.frames:
            raise UserError(
                f"--task {request.task} needs a clip of {padding.frames} frames, it has "
                f"{len(video)}"
            )

    def _given(
        self, request: Request, padding: Padding, layout: Layout, prompts: Sequence[str]
    ) -> Given | None:
        """The tokens that a request gives, one row for each prompt.

        A prior of tokens that were made under their captions reads given frames under the prompt,
        one of tokens without captions reads the same in every row.

        Raises:
            UserError: see `_check_given`.
        """
        video, rows = request.video, len(prompts)
        if video is None:
            return None
        self._check_given(request, padding, video)
        # Only latent frames whose frames are all given; encoding is causal in time.
        kept = self.kept_frames(request)
        if kept is None:
            known, kept = given_tokens(layout, request.task), padding.frames
        else:
            known = given_groups(layout, 1 + (kept - 1) // layout.latent_stride[0])
        size = self.tokenizer.padding(kept, padding.height, padding.width)
        clip = size.pad(video[None, :kept])
        if self.captioned and any(prompts):
            captions = [prompt or None for prompt in prompts]
            ids = self.tokenizer.encode_padded(np.repeat(clip, rows, axis=0), captions)
        else:
            ids = tuple(np.repeat(x, rows, axis=0) for x in self.tokenizer.encode_padded(clip))
        whole = [
            np.pad(level, ((0, 0), (0, grid[0] - level.shape[1]), (0, 0), (0, 0)))
            for level, grid in zip(ids, layout.grids, strict=True)
        ]
        return Given(codes_of(whole, self.prior.config.bits), known)


def _scaled(progress: Progress | None, done: float, clips: float) -> Progress:
    def report(share: float) -> None:
        if progress is not None:
            progress(done + share * clips)

    return report
