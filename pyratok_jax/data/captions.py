"""Captions to token ids on the host, inside the data pipeline."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from absl import logging
from jaxtyping import Bool, Int

from pyratok_jax.errors import UserError, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_captions(captions: Sequence[str | None]) -> None:
    """Look at a sample of the training's captions before its text terms are computed on them.

    Warns where all that there are say the same: nothing can be told apart by them.

    Raises:
        UserError: there is none.
    """
    present = {caption.strip() for caption in captions if caption and caption.strip()}
    if not present:
        raise UserError(
            f"none of {len(captions)} clips looked at has a caption, but the loss has text terms; "
            "caption the sources, or set config.loss.weights.text and text_codebook to 0"
        )
    if len(present) == 1 and len(captions) > 1:
        logging.warning(
            "all captions looked at are the same (%s...): text terms have nothing to tell apart",
            next(iter(present))[:60],
        )


# Per token that is kept: what follows in a longer caption cannot reach the kept ones.
_MOST_CHARACTERS = 256


_TEMPLATE_SECONDS = 20.0


def _settle(future: Future[str], call: Callable[[str], str], argument: str) -> None:
    try:
        future.set_result(call(argument))
    except BaseException as error:
        future.set_exception(error)


class CaptionTokenizer:
    """Tokenises batches of captions to a fixed length; the pipeline's `tokenize` argument.

    Longer captions are cut at the end. How many were cut is counted in `truncated` (of `seen`), and
    said in the log the first time and whenever the count has doubled.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", length: int = 128, *, chat: bool = False
    ) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: a transformers tokenizer.
            length: tokens per caption, padding included.
            chat: put every caption into the model's chat template, as a user's message.
        """
        if length < 1:
            raise ValueError(f"length {length} leaves no room for a token")
        if chat and not getattr(tokenizer, "chat_template", None):
            raise ValueError("chat: this tokenizer has no chat template")
        self.tokenizer, self.length, self.chat = tokenizer, length, chat
        self.pad = getattr(tokenizer, "pad_token_id", None) or 0
        self.seen = self.truncated = 0
        self._next_report = 1
        self._tried = False

    def __call__(
        self, captions: Sequence[str | None]
    ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Ids (int32) and mask, right-padded; a row without any True has no caption."""
        ids = np.full((len(captions), self.length), self.pad, np.int32)
        mask = np.zeros((len(captions), self.length), bool)
        most = _MOST_CHARACTERS * self.length
        present = {n: text[:most] for n, text in enumerate(captions) if text and text.strip()}
        for row, tokens in zip(present, self._tokens(list(present.values())), strict=True):
            self.seen += 1
            self.truncated += len(tokens) > self.length
            kept = tokens[: self.length]
            ids[row, : len(kept)] = kept
            mask[row, : len(kept)] = True
        self._report()
        return ids, mask

    def _filled_in(self, captions: list[str]) -> list[str]:
        """Captions in the chat template; the first one tells whether it ends.

        Raises:
            UserError: it takes too long: templates may hold loops within loops.
        """

        def fill(caption: str) -> str:
            message = [{"role": "user", "content": caption}]
            return self.tokenizer.apply_chat_template(message, tokenize=False)

        if not self._tried:
            # Not an executor's thread, which the interpreter would wait for at its end.
            trial: Future[str] = Future()
            Thread(target=_settle, args=(trial, fill, captions[0]), daemon=True).start()
            try:
                trial.result(_TEMPLATE_SECONDS)
            except TimeoutError as error:
                raise UserError(
                    f"the tokenizer's chat template takes more than {_TEMPLATE_SECONDS:g} s for "
                    "one caption; repair it, or do without chat"
                ) from error
            self._tried = True
        return [fill(caption) for caption in captions]

    def _tokens(self, captions: list[str]) -> list[list[int]]:
        if not captions:
            return []
        try:
            if self.chat:
                captions = self._filled_in(captions)
            return self.tokenizer(captions, add_special_tokens=not self.chat)["input_ids"]
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            if not self.chat:
                raise
            raise UserError(
                f"the tokenizer's chat template fails ({short(str(error))}); repair it, or do "
                "without chat"
            ) from error
        except BaseException as error:
            # A panic of the tokenizers library, such as a regular expression without end, is no
            # Exception.
            if type(error).__name__ != "PanicException":
                raise
            longest = max(map(len, captions))
            raise UserError(
                f"the tokenizer fails on captions of up to {longest} characters ({error}); use "
                "another tokenizer.json"
            ) from error

    def _report(self) -> None:
        if self.truncated >= self._next_report:
            self._next_report = 2 * self.truncated
            logging.warning(
                "captions: %d of %d are longer than %d tokens and were cut",
                self.truncated,
                self.seen,
                self.length,
            )
