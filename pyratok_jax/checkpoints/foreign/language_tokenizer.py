"""Tokenizers beside language models: read from folders and GGUF files, without torch."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.errors import UserError, quoted, short
from pyratok_jax.io.documents import refusing

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# What a tokenizer may consist of; copied along by the converter.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
)  # fmt: skip
# How byte-level BPE models split text before merging, by the name that GGUF files give it.
_DIGITS = ("smollm",)
_PATTERNS = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_SPECIAL, _USER_DEFINED, _BYTE = 3, 4, 6
_MAX_BYTES = 256 << 20  # Of one file; the largest published one has 34 MB.


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer's files in a folder."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def load_tokenizer_files(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder.

    Raises:
        UserError: when there is none that can be read.
    """
    for path in tokenizer_files(folder):
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size >> 20} MiB, at most {_MAX_BYTES >> 20} are read; "
                "it is no tokenizer's file"
            )
    try:
        tokenizer = _read(folder)
    except BaseException as error:
        # A panic of the tokenizers library is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{folder}: no readable tokenizer ({type(error).__name__}: {short(str(error))}); copy "
            "the model's tokenizer.json and tokenizer_config.json there"
        ) from error
    _check_settings(tokenizer, str(folder))
    return tokenizer


def _read(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    # Twice the time of all else here: it loads PyTorch where that is installed.
    from transformers import AutoTokenizer

    # Code shipped with a tokenizer is never executed, and the user is not prompted for it.
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _check_settings(tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Refuse what transformers takes over unseen and fails on at the first caption."""
    length, template = tokenizer.model_max_length, tokenizer.chat_template
    # Without a limit transformers has 1e30 there.
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
        raise UserError(
            f"{where}: model_max_length {quoted(length)} of the tokenizer is no number from 1; "
            "repair tokenizer_config.json"
        )
    named = isinstance(template, dict) and all(isinstance(x, str) for x in template.values())
    if template is not None and not isinstance(template, str) and not named:
        raise UserError(
            f"{where}: chat_template {quoted(template)} of the tokenizer is no text, and no texts "
            "by name; repair tokenizer_config.json"
        )


def gguf_tokenizer(source: TensorSource) -> "PreTrainedTokenizerBase":
    """The tokenizer inside a GGUF file, as a transformers tokenizer.

    Raises:
        UserError: for a kind of tokenizer that is not supported.
    """
    where, advice = f"{source.path}: the tokenizer in its header", "put a tokenizer.json beside it"
    try:
        with refusing(where, advice):
            tokenizer = _gguf_tokenizer(source)
    except BaseException as error:
        # The tokenizers library raises bare Exceptions, and panics, which are none.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: {short(str(error))}; {advice}") from error
    _check_settings(tokenizer, str(source.path))
    return tokenizer


def _gguf_tokenizer(source: TensorSource) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    facts = source.metadata
    model = facts.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if model not in builders:
        raise UserError(
            f"{source.path}: tokenizer model {model!r} is not one of {', '.join(builders)}; put a "
            "tokenizer.json beside the file"
        )
    tokens = facts["tokenizer.ggml.tokens"]
    types = facts.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    tokenizer = builders[model](source, tokens, types)
    settings: dict[str, str] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = facts.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            settings[f"{name}_token"] = tokens[int(number)]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=facts.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **settings,
    )


def _byte_level(source: TensorSource, tokens: list[str], types: list[int]) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in source.metadata["tokenizer.ggml.merges"]]
    kind = source.metadata.get("tokenizer.ggml.pre", "")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split: list[pre_tokenizers.PreTokenizer] = []
    if kind in _DIGITS:
        split = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    elif kind in _PATTERNS:
        pattern = pre_tokenizers.Split(Regex(_PATTERNS[kind]), "isolated")
        split = [pattern, pre_tokenizers.ByteLevel(False, use_regex=False)]
    else:
        raise UserError(
            f"{source.path}: text splitting {kind!r} is not one of "
            f"{', '.join((*_DIGITS, *_PATTERNS))}; put a tokenizer.json beside the file"
        )
    if kind == "qwen2":
        result.normalizer = normalizers.NFC()
    result.pre_tokenizer = pre_tokenizers.Sequence(split)
    result.decoder = decoders.ByteLevel()
    _add_special(result, tokens, types)
    _add_bos(result, source, tokens)
    return result


def _sentencepiece(source: TensorSource, tokens: list[str], types: list[int]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = source.metadata["tokenizer.ggml.scores"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = _merges_from_scores(vocabulary, scores)
    result = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    if source.metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("▁"))
    result.normalizer = normalizers.Sequence(steps)
    result.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_special(result, tokens, types)
    _add_bos(result, source, tokens)
    return result


def _merges_from_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Merges in the order in which the scores would apply them."""
    found = []
    for token, number in vocabulary.items():
        parts = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        parts.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-scores[number], pair) for pair in parts]
    return [pair for _, pair in sorted(found, key=lambda item: item[0])]


def _add_special(result: "Tokenizer", tokens: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    special = [t for t, kind in zip(tokens, types, strict=True) if kind == _SPECIAL]
    result.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    users = [t for t, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    result.add_tokens([AddedToken(t, normalized=False) for t in users])


def _add_bos(result: "Tokenizer", source: TensorSource, tokens: list[str]) -> None:
    """Put the begin token before every text where the file asks for it."""
    from tokenizers import processors

    number = source.metadata.get("tokenizer.ggml.bos_token_id")
    wanted = source.metadata.get(
        "tokenizer.ggml.add_bos_token", source.metadata.get("tokenizer.ggml.model") == "llama"
    )
    if wanted and number is not None:
        bos = tokens[int(number)]
        result.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, int(number))]
        )


def save_tokenizer(
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[tempfile.TemporaryDirectory, list[Path]]:
    """Write a tokenizer into a temporary folder; its files, valid while the folder is kept."""
    folder = tempfile.TemporaryDirectory()
    tokenizer.save_pretrained(folder.name)
    return folder, tokenizer_files(Path(folder.name))
