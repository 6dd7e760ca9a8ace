"""The token: from a file, the environment or a flag, and in no record."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gr00t_trt.errors import UsageError
from gr00t_trt.serve.api_token import VARIABLE, redacted, token_of


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def given(flag: str | None = None, file: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(api_token=flag, api_token_file=None if file is None else str(file))


def test_a_flag_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    assert token_of(given()) is None
    monkeypatch.setenv(VARIABLE, "of-the-environment")
    assert token_of(given()) == "of-the-environment"
    assert token_of(given(file=file)) == "of-the-file"
    assert token_of(given("of-the-flag")) == "of-the-flag"
    monkeypatch.setenv(VARIABLE, "")
    assert token_of(given()) is None


@pytest.mark.parametrize("content", [b"", b"\n \n", b"two words", b"\xff\xfe", "naïve".encode(), b"x" * 5000, b"a\nb"])
def test_what_can_be_no_token_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="where a token should be") as caught:
        token_of(given(file=file))
    assert "two words" not in str(caught.value)


def test_a_file_that_is_not_there_and_two_flags(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        token_of(given(file=tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        token_of(given(file=tmp_path))
    with pytest.raises(UsageError, match="exclude each other"):
        token_of(given("x", tmp_path))


@pytest.mark.parametrize("spelling", ["--api_token", "--api-token"])
def test_a_command_line_is_kept_without_the_token(spelling: str) -> None:
    assert redacted(["rollout", spelling, "secret", "--port", "1"]) == ["rollout", spelling, "***", "--port", "1"]
    assert redacted([f"{spelling}=secret=", "x"]) == [f"{spelling}=***", "x"]
    assert redacted([f"{spelling}_file", "token.txt"]) == [f"{spelling}_file", "token.txt"]
    assert redacted([spelling]) == [spelling]
