"""The tokenizer of the model: found on disk or on the hub, checked against the model, or made up for tests.

transformers and huggingface_hub are imported here only, and tokenizers only for the synthetic one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import TokenizerError

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


class Tokenizer:
    """A tokenizer of transformers, or of the library below it.

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
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return list(getattr(found, "ids", found))


def load_tokenizer(
    where: str | Path | None = None,
    checkpoint: Path | None = None,
    special_tokens: Mapping[str, int] = SPECIAL_TOKENS,
    vocab_size: int | None = None,
) -> Tokenizer:
    """The tokenizer of the model.

    Looked for in this order: `where`; the checkpoint folder and its subfolders; Qwen3-1.7B in the hub's cache, then
    on the hub (unless HF_HUB_OFFLINE is set). Image tokens that it lacks are added.

    Args:
        where: A folder, a tokenizer.json file, or a hub id; when given, nothing else is tried.
        checkpoint: The model folder.
        special_tokens: Name -> id in the model, as far as known: only the image token's for a checkpoint with a
            vision-language configuration of its own. The tokenizer then says what the others are.
        vocab_size: Rows of the model's embedding table; None leaves it unchecked.
    Raises: TokenizerError when none is found, when a special token has no id or another one than in the model, or
        when there are more ids than the model has rows.
    """
    if where is not None:
        tokenizer, name = _load_explicit(str(where)), str(where)
    else:
        folder = _in_checkpoint(checkpoint)
        name = str(folder) if folder else HUB_ID
        tokenizer = _from_path(folder) if folder else _from_hub(HUB_ID)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([t for t in IMAGE_TOKENS if t in special_tokens and t not in known], special_tokens=True)
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
    out = Tokenizer(tokenizer, name, ids, tokenizer.get_added_vocab())
    if vocab_size is not None and out.vocab_size > vocab_size:
        raise TokenizerError(
            f"{name}: the tokenizer has {out.vocab_size} ids",
            known=f"{vocab_size} in the model",
            fix=f"this tokenizer belongs to another model; {HINT}",
        )
    return out


def _load_explicit(where: str) -> Any:
    path = Path(where).expanduser()
    if path.exists():
        return _from_path(path)
    # A hub id is "name" or "organisation/name"; anything else was meant as a path.
    if where.count("/") > 1 or where.startswith((".", "/", "~")) or path.suffix == ".json" or not where.strip():
        raise TokenizerError(f"--tokenizer {where}: no such file or folder", fix=HINT)
    return _from_hub(where)


def _in_checkpoint(checkpoint: Path | None) -> Path | None:
    if checkpoint is None or not Path(checkpoint).is_dir():
        return None
    folders = [Path(checkpoint), *sorted(p for p in Path(checkpoint).iterdir() if p.is_dir())]
    return next((f for f in folders if _is_tokenizer_folder(f)), None)


def _is_tokenizer_folder(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("tokenizer_config.json", "vocab.json", "merges.txt")
    )


def _from_path(path: Path) -> Any:
    import transformers

    try:
        if path.is_file():
            return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
        if not _is_tokenizer_folder(path):
            raise TokenizerError(
                f"{path}: no tokenizer in this folder",
                known="tokenizer.json, or tokenizer_config.json with vocab.json and merges.txt",
                fix=HINT,
            )
        if not (path / "tokenizer_config.json").is_file():
            return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        return transformers.AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except TokenizerError:
        raise
    except Exception as error:  # a damaged file surfaces as anything from KeyError to the Rust side's Exception
        raise TokenizerError(f"{path}: not a readable tokenizer: {error}", fix=HINT) from error


def _from_hub(name: str) -> Any:
    import huggingface_hub
    import transformers

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    reason: Exception | None = None
    for local_only in (True,) if offline else (True, False):
        try:
            if not local_only:
                # Downloads retry for a minute when there is no network; this asks once.
                huggingface_hub.HfApi().model_info(name, timeout=10)
            return transformers.AutoTokenizer.from_pretrained(name, local_files_only=local_only)
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
    import json

    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Bpe
    from tokenizers.trainers import BpeTrainer

    taken = set(special_tokens.values())
    free = [i for i in range(min(vocab_size, 1024)) if i not in taken]
    if len(free) < 256 or max(taken) >= vocab_size:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is too small for a synthetic tokenizer",
            known=f"256 byte tokens and the special tokens {dict(special_tokens)}",
        )
    splitting = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained = Bpe(models.BPE())
    trained.pre_tokenizer = splitting
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=len(free), min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_corpus(), trainer)
    model = json.loads(trained.to_str())["model"]
    ranked = sorted(model["vocab"], key=lambda token: (token not in alphabet, model["vocab"][token]))
    vocabulary = {token: free[rank] for rank, token in enumerate(ranked)} | dict(special_tokens)
    # The file format has changed from "a b" to ["a", "b"].
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    merges = [(str(left), str(right)) for left, right in pairs]
    out = Bpe(models.BPE(vocab=vocabulary, merges=merges))
    out.normalizer = normalizers.NFC()
    out.pre_tokenizer = splitting
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
