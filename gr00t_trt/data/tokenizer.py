"""The tokenizer of the model: found on disk or on the hub, checked against the model, or made up for tests.

It is built from its data files alone: Python files beside them, which their configuration may name, are never run.
tokenizers is imported here only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.files import parse_json
from ..errors import TokenizerError, refetch

SPECIAL_TOKENS: Mapping[str, int] = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<IMG_CONTEXT>": 151669,
    "<img>": 151670,
    "</img>": 151671,
}
"""Special tokens of the prompt and their ids in GR00T N1.5."""

IMAGE_TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>")
"""Those that Qwen3 does not have; added in this order they follow its last id, 151668."""

HUB_ID = "Qwen/Qwen3-1.7B"
HINT = "pass --tokenizer FOLDER (or a tokenizer.json, or a hub id), or save one in the checkpoint folder"
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pre-tokenisation of the Qwen2 family."""


QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
"""Names under which vocab.json and merges.txt mean this family."""
_LISTS = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json", "merges.txt")


class Tokenizer:
    """A tokenizer of the library `tokenizers`, with what the prompt needs to know of it.

    Attributes:
        name: Where it came from.
        special_tokens: The six names of `SPECIAL_TOKENS` and their ids in this tokenizer.
        special_strings: All texts that would become a single special token.
    """

    def __init__(self, tokenizer: Any, name: str, special_tokens: Mapping[str, int], special_strings: Iterable[str]):
        self._tokenizer = tokenizer
        self.name = name
        self.special_tokens = special_tokens
        self.pad_id = special_tokens["<|endoftext|>"]
        self.special_strings = frozenset(special_strings)

    @property
    def vocab_size(self) -> int:
        """Highest id plus one."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; nothing is added at either end."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def fingerprint(self) -> str:
        """SHA-256 of all that it does, to tell it from others."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """Write it as ``tokenizer.json`` into a folder; returns the file."""
        file = folder / "tokenizer.json"
        self._tokenizer.save(str(file))
        return file


def load_tokenizer(
    where: str | Path | None = None,
    checkpoints: Sequence[Path] = (),
    special_tokens: Mapping[str, int] = SPECIAL_TOKENS,
    vocab_size: int | None = None,
) -> Tokenizer:
    """The tokenizer of the model.

    Looked for in this order: `where`; the checkpoint folders and their subfolders; Qwen3-1.7B in the hub's cache, then
    on the hub (unless HF_HUB_OFFLINE is set). Image tokens that it lacks are added.

    Args:
        where: A folder, a tokenizer.json file, or a hub id; when given, nothing else is tried.
        checkpoints: The model's folder, and its base model's.
        special_tokens: Name -> id in the model, as far as known: only the image token's for a checkpoint with a
            vision-language configuration of its own. The tokenizer then says what the others are.
        vocab_size: Rows of the model's embedding table; None leaves it unchecked.
    Raises: TokenizerError when none is found, when a special token has no id or another one than in the model, or
        when there are more ids than the model has rows.
    """
    if where is not None:
        tokenizer, name = _load_explicit(str(where)), str(where)
    else:
        folder = next(filter(None, map(_in_checkpoint, checkpoints)), None)
        name = str(folder) if folder else HUB_ID
        tokenizer = _from_path(folder) if folder else _from_hub(HUB_ID)
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens([t for t in IMAGE_TOKENS if t in special_tokens and t not in known])
    known = tokenizer.get_vocab()
    for token in {**SPECIAL_TOKENS, **special_tokens}:
        if token not in known or known[token] != special_tokens.get(token, known[token]):
            found = f"id {known[token]}" if token in known else "no id"
            raise TokenizerError(
                f"{name}: special token {token} has {found} in the tokenizer",
                known=f"id {special_tokens[token]} in the model" if token in special_tokens else SPECIAL_TOKENS,
                fix=f"this tokenizer belongs to another model; {HINT}",
            )
    ids = {token: known[token] for token in SPECIAL_TOKENS}
    out = Tokenizer(tokenizer, name, ids, [t.content for t in tokenizer.get_added_tokens_decoder().values()])
    if vocab_size is not None and out.vocab_size > vocab_size:
        raise TokenizerError(
            f"{name}: the tokenizer has {out.vocab_size} ids",
            known=f"{vocab_size} in the model",
            fix=f"this tokenizer belongs to another model; {HINT}",
        )
    return out


def _load_explicit(where: str) -> Any:
    path = Path(os.path.expanduser(where))
    if os.path.exists(path):
        return _from_path(path)
    # A hub id is "name" or "organisation/name"; anything else was meant as a path.
    if where.count("/") > 1 or where.startswith((".", "/", "~")) or path.suffix == ".json" or not where.strip():
        raise TokenizerError(f"--tokenizer {where}: no such file or folder", fix=HINT)
    return _from_hub(where)


def _in_checkpoint(checkpoint: Path) -> Path | None:
    folders = [checkpoint, *sorted(path for path in checkpoint.iterdir() if path.is_dir())]
    return next((f for f in folders if _is_tokenizer_folder(f)), None)


def _is_tokenizer_folder(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("tokenizer_config.json", "vocab.json", "merges.txt")
    )


def _from_path(path: Path) -> Any:
    from tokenizers import Tokenizer as Fast

    if path.is_dir() and not _is_tokenizer_folder(path):
        raise TokenizerError(
            f"{path}: no tokenizer in this folder",
            known="tokenizer.json, or tokenizer_config.json with vocab.json and merges.txt",
            fix=HINT,
        )
    whole = path if path.is_file() else path / "tokenizer.json"
    try:
        out = Fast.from_file(str(whole)) if whole.is_file() else _qwen2(path)
        if path.is_dir():
            _add_listed(out, path)
    except TokenizerError:
        raise
    except Exception as error:  # a damaged file surfaces as anything from KeyError to the Rust side's Exception
        fix = f"{refetch(whole)}; or {HINT}" if whole.is_file() else HINT
        raise TokenizerError(f"{path}: not a readable tokenizer: {error}", fix=fix) from error
    # A file may carry the settings of a training run; a prompt is neither cut nor filled up.
    out.no_truncation()
    out.no_padding()
    return out


def _qwen2(folder: Path) -> Any:
    """Qwen2's tokenizer from its vocabulary and merges."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    kind = _json(folder / "tokenizer_config.json").get("tokenizer_class", QWEN2_CLASSES[0])
    if kind not in QWEN2_CLASSES:
        raise TokenizerError(f"{folder}: tokenizer_class {str(kind)[:60]!r}", known=QWEN2_CLASSES, fix=HINT)
    out = Fast(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    out.normalizer = normalizers.NFC()
    out.pre_tokenizer = _qwen2_splitting()
    out.decoder = decoders.ByteLevel()
    return out


def _qwen2_splitting() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _add_listed(tokenizer: Any, folder: Path) -> None:
    """Add the tokens that stand beside the vocabulary. Raises: TokenizerError where one gets another id than listed."""
    from tokenizers import AddedToken

    listed = {int(index): token for token, index in _json(folder / "added_tokens.json").items()}
    for index, entry in _json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}).items():
        listed[int(index)] = entry["content"]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for index, token in sorted(listed.items()):
        if token not in known:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        found = tokenizer.token_to_id(token)
        if found != index:
            what = f"{folder}: token {token!r} is listed with id {index}, and its place in the vocabulary is {found}"
            raise TokenizerError(what, fix=f"the files are of different tokenizers: copy them again; or {HINT}")


def _json(file: Path) -> dict[str, Any]:
    """The object of a file; an empty one where there is no file."""
    value = parse_json(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds {type(value).__name__}, not an object")
    return value


def _from_hub(name: str) -> Any:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    reason: Exception | None = None
    for local_only in (True,) if offline else (True, False):
        try:
            import huggingface_hub

            if not local_only:
                # Downloads retry for a minute when there is no network; this asks once.
                huggingface_hub.HfApi().model_info(name, timeout=10)
            folder = huggingface_hub.snapshot_download(name, allow_patterns=list(_LISTS), local_files_only=local_only)
            return _from_path(Path(folder))
        except Exception as error:  # not cached, no network, no such repository: all mean "not to be had here"
            reason = error
    state = "HF_HUB_OFFLINE is set" if offline else "the hub did not deliver it"
    raise TokenizerError(
        f"no tokenizer: {name} is not in the hub's cache and {state}",
        known=str(reason).strip().splitlines()[0][:200] if str(reason).strip() else repr(reason),
        fix=HINT,
    ) from reason


def synthetic_tokenizer(special_tokens: Mapping[str, int] = SPECIAL_TOKENS, vocab_size: int = 151680) -> Tokenizer:
    """A tokenizer for models with random weights: no download, the same on every machine.

    Byte-level BPE with Qwen2's splitting, trained on a few hundred words of robot instructions, so that these cost
    about one token per word and the prompt template as many tokens as with the real tokenizer. Any text can be
    encoded. Ordinary ids fill [0, vocab_size) from below, leaving out the special tokens' ids.

    Args:
        special_tokens: Name -> id.
        vocab_size: The model's vocabulary; at most about 1000 ids are used.
    Raises: TokenizerError when the vocabulary cannot hold the 256 bytes beside the special tokens.
    """
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Bpe
    from tokenizers.trainers import BpeTrainer

    taken = set(special_tokens.values())
    free = [i for i in range(min(vocab_size, 1024)) if i not in taken]
    if len(free) < 256 or max(taken) >= vocab_size:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is too small for a synthetic tokenizer",
            known=f"256 byte tokens and the special tokens {dict(special_tokens)}",
        )
    trained = Bpe(models.BPE())
    trained.pre_tokenizer = _qwen2_splitting()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=len(free), min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_corpus(), trainer)
    model = parse_json(trained.to_str())["model"]
    ranked = sorted(model["vocab"], key=lambda token: (token not in alphabet, model["vocab"][token]))
    vocabulary = {token: free[rank] for rank, token in enumerate(ranked)} | dict(special_tokens)
    # The file format has changed from "a b" to ["a", "b"].
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    merges = [(str(left), str(right)) for left, right in pairs]
    out = Bpe(models.BPE(vocab=vocabulary, merges=merges))
    out.normalizer = normalizers.NFC()
    out.pre_tokenizer = _qwen2_splitting()
    out.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return Tokenizer(out, "synthetic", special_tokens, special_tokens)


def _corpus() -> list[str]:
    """Sentences to learn merges from: the prompt's own words, so often that they always fit, then instructions."""
    template = [
        "system\nYou are a helpful assistant.",
        "user\n",
        "image",
        "assistant\n",
        "Perform the default behavior.",
    ]
    verbs = "pick up put place move push pull open close turn grasp lift pour stack wipe hand reach press hold drop"
    things = (
        "pear apple potato sweet meat salt cupcake cup mug bowl plate pot pan can bottle box block cube ball drawer "
        "door cabinet microwave stove sink faucet counter table shelf basket tray towel lid knob button handle fork "
        "knife spoon banana orange carrot tomato bread cheese egg milk toy book lamp"
    )
    others = (
        "the a an it and then from to into in on onto of off with under over next by left right top bottom front back "
        "red green blue yellow white black small large robot arm gripper object all your"
    )
    words = [*verbs.split(), *things.split(), *others.split()]
    lines = [line for line in template for _ in range(50)]
    lines += ["pick the pear from the counter and place it in the plate"] * 20
    lines += [f" {word}" for word in words for _ in range(4)]
    return lines + [form for word in verbs.split() for form in (word, word.capitalize()) for _ in range(2)]
