from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Bpe

from gr00t_trt.data import SPECIAL_TOKENS, load_tokenizer, synthetic_tokenizer
from gr00t_trt.errors import TokenizerError

TINY = {name: 1000 + i for i, name in enumerate(SPECIAL_TOKENS)}
FULL = synthetic_tokenizer()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("pick the pear from the counter and place it in the plate", 12),
        ("Perform the default behavior.", 5),
        ("system\nYou are a helpful assistant.", 8),
        ("user\n<image 1>", 7),
        ("<image 2>", 5),
        ("<image 10>", 6),
        ("assistant\n", 2),
        ("\n", 1),
        ("push the red block to the left", 7),
        ("", 0),
    ],
)
@pytest.mark.parametrize("tokenizer", [FULL, synthetic_tokenizer(TINY, 1024)], ids=["full", "tiny"])
def test_about_one_token_per_word(tokenizer, text, tokens):
    assert len(tokenizer.encode(text)) == tokens


def test_ids_fit_the_vocabulary():
    tiny = synthetic_tokenizer(TINY, 1024)
    assert tiny.pad_id == TINY["<|endoftext|>"]
    assert tiny.vocab_size <= 1024
    assert FULL.vocab_size == 151672
    low = synthetic_tokenizer({name: i for i, name in enumerate(SPECIAL_TOKENS)}, 600)
    assert min(low.encode("pick the zebra: ünïcode 42")) >= 6
    with pytest.raises(TokenizerError, match="a vocabulary of 200 is too small"):
        synthetic_tokenizer({name: i for i, name in enumerate(SPECIAL_TOKENS)}, 200)


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_has_ids_below_the_special_ones(text):
    if not any(token in text for token in SPECIAL_TOKENS):
        assert all(0 <= i < 1024 for i in FULL.encode(text))


def test_the_same_in_every_process_and_heavy_libraries_load_late():
    text = "pick the cup, unseen words 12"
    code = (
        "import sys; from gr00t_trt.data import synthetic_tokenizer as s;"
        "print(sorted({'av', 'pyarrow', 'transformers', 'tokenizers'} & set(sys.modules)));"
        f"print(s().encode({text!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"[]\n{FULL.encode(text)}\n"


@pytest.fixture
def folder(tmp_path):
    """A folder as transformers saves it, with ids that fit `TINY`."""
    tokenizer = synthetic_tokenizer(TINY, 1024)._tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_from_a_folder_a_file_and_a_checkpoint(folder, tmp_path_factory):
    expected = synthetic_tokenizer(TINY, 1024).encode("pick the pear")
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    (checkpoint / "eagle2_hg_model").symlink_to(folder, target_is_directory=True)
    for tokenizer in (
        load_tokenizer(folder, (), TINY),
        load_tokenizer(str(folder / "tokenizer.json"), (), TINY),
        load_tokenizer(None, [folder], TINY),
        load_tokenizer(None, [checkpoint], TINY),
    ):
        assert tokenizer.encode("pick the pear") == expected
        assert tokenizer.pad_id == TINY["<|endoftext|>"]
        assert tokenizer.vocab_size == 1006
        assert "<|im_end|>" in tokenizer.special_strings
    assert load_tokenizer(None, [checkpoint], TINY).name.endswith("eagle2_hg_model")


def test_image_tokens_that_are_lacking_are_added_in_order(tmp_path):
    special = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    tokenizer = synthetic_tokenizer(special, 1024)
    path = tmp_path / "tokenizer.json"
    tokenizer._tokenizer.save(str(path))
    size = Bpe.from_file(str(path)).get_vocab_size()
    ids = {"<IMG_CONTEXT>": size, "<img>": size + 1, "</img>": size + 2}
    assert load_tokenizer(path, (), {**special, **ids}).vocab_size == size + 3


def test_ids_that_differ_from_the_model(folder):
    wanted = {**TINY, "<|im_end|>": 77}
    with pytest.raises(TokenizerError, match=r"<\|im_end\|> has id 1002[\s\S]*id 77 in the model[\s\S]*--tokenizer"):
        load_tokenizer(folder, (), wanted)
    with pytest.raises(TokenizerError, match=r"<\|other\|> has no id"):
        load_tokenizer(folder, (), {**TINY, "<|other|>": 5})


def test_the_tokenizer_says_what_the_model_leaves_open(folder):
    image = {"<IMG_CONTEXT>": TINY["<IMG_CONTEXT>"]}
    assert load_tokenizer(folder, (), image, 1024).special_tokens == TINY
    with pytest.raises(TokenizerError, match=r"1006 ids[\s\S]*1005 in the model"):
        load_tokenizer(folder, (), image, 1005)


def test_a_tokenizer_without_a_special_token_is_refused(tmp_path):
    tokenizer = synthetic_tokenizer({"<|endoftext|>": 0, "<IMG_CONTEXT>": 1}, 1024)
    tokenizer._tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=r"<\|im_start\|> has no id"):
        load_tokenizer(tmp_path, (), {"<IMG_CONTEXT>": 1})


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("./nowhere", "--tokenizer ./nowhere: no such file or folder"),
        ("missing/tokenizer.json", "no such file or folder"),
        ("no-such-org/no-such-tokenizer", r"no-such-tokenizer is not in the hub's cache and HF_HUB_OFFLINE is set"),
    ],
)
def test_nothing_there(where, words):
    with pytest.raises(TokenizerError, match=words) as caught:
        load_tokenizer(where, (), TINY)
    assert "--tokenizer FOLDER" in str(caught.value)


def test_nothing_anywhere(tmp_path, monkeypatch):
    def absent(name, **kwargs):
        raise OSError(f"{name} is not cached")

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(TokenizerError, match=r"no tokenizer: Qwen/Qwen3-1.7B[\s\S]*save one in the checkpoint folder"):
        load_tokenizer(None, [tmp_path])


def test_damaged_files(tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer in this folder"):
        load_tokenizer(tmp_path, (), TINY)
    (tmp_path / "tokenizer.json").write_text("{")
    for where in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(TokenizerError, match="not a readable tokenizer"):
            load_tokenizer(where, (), TINY)
