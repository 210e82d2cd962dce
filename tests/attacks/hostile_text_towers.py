"""Towers with text encoders and tokenizers that bring code, name other places, or are too large; most are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack import Act, Attack
from helpers.hf_text_models import write_hf_tower

from pvlr.core.towers import load_towers

BERT, ROBERTA = "sentence-transformers/all-MiniLM-L6-v2", "roberta-base"
CODE = "import pathlib; pathlib.Path({!r}).touch()\n"
NO_CODE = "no code that comes with a tower is run"

Spoil = Callable[[Path], object]


def tower(name: str, spoil: Spoil, outcome: str, *, sentence: str = "a dog", encoder: str = BERT) -> Attack:
    """A good tower, spoilt, loaded and asked for one vector; code that ran is an error of its own."""

    def make(folder: Path) -> Act:
        write_hf_tower(folder, encoder)
        spoil(folder)
        return lambda: look(folder, sentence)

    return Attack(name, make, outcome)


def look(folder: Path, sentence: str) -> str:
    try:
        return f"{load_towers(f'local-dir:{folder}').text.encode([sentence]).shape[1]} numbers"
    finally:
        if (folder / "ran").exists():
            raise RuntimeError("code that came with a tower was run")


def entries(file: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        told = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(told | changes))

    return spoil


def in_text(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        told = json.loads((folder / "open_clip_config.json").read_text())
        told["model_cfg"]["text_cfg"] |= changes
        (folder / "open_clip_config.json").write_text(json.dumps(told))

    return spoil


def with_code(module: str, spoil: Spoil) -> Spoil:
    def both(folder: Path) -> None:
        (folder / f"{module}.py").write_text(CODE.format(str(folder / "ran")))
        spoil(folder)

    return both


def content(file: str, text: str) -> Spoil:
    return lambda folder: (folder / file).write_text(text)


def large(file: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / file).open("wb") as opened:
            opened.truncate(2**30)

    return spoil


def pipe(file: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return spoil


def slow_pattern(folder: Path) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    told["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    entries("tokenizer_config.json", tokenizer_class="TokenizersBackend")(folder)


def no_words(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def parts(auto: str, of: str) -> dict[str, str]:
    return {auto: f"evil.{of}"}


TEXT_TOWERS = (
    tower(
        "an encoder's configuration with code beside it",
        with_code("evil", entries("config.json", auto_map=parts("AutoConfig", "C") | parts("AutoModel", "M"))),
        f"refused: config.json: expected no entry 'auto_map': {NO_CODE}",
    ),
    tower(
        "a tokenizer with code beside it",
        with_code("evil", entries("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})),
        f"refused: tokenizer_config.json: expected no entry 'auto_map': {NO_CODE}",
    ),
    tower(
        "an encoder's configuration that asks to be trusted",
        entries("config.json", trust_remote_code=True),
        f"refused: config.json: expected no entry 'trust_remote_code': {NO_CODE}",
    ),
    tower(
        "a tower's configuration that trusts its tokenizer",
        in_text(tokenizer_kwargs={"trust_remote_code": True}),
        "has text_cfg.tokenizer_kwargs with 'trust_remote_code', expected none but clean, strip_sep_token, language",
    ),
    tower(
        "attention that is code of the Hub",
        entries("config.json", attn_implementation="some-one/kernel"),
        "refused: config.json: expected attn_implementation to be 'eager' or 'sdpa', got 'some-one/kernel'",
    ),
    tower(
        "a tokenizer's class that is a function of a module",
        with_code("evil", entries("tokenizer_config.json", tokenizer_class="evil.T")),
        "refused: tokenizer_config.json: expected tokenizer_class to be the name of a class alone, got 'evil.T'",
    ),
    tower(
        "a tokenizer's vocabulary at an address",
        entries("tokenizer_config.json", vocab_file="https://example.org/vocab.txt"),
        "refused: tokenizer_config.json: expected no address, since nothing is fetched from one, got 'https://example",
    ),
    tower(
        "a tokenizer's file elsewhere on the machine",
        in_text(tokenizer_kwargs={"tokenizer_file": "/etc/passwd"}),
        "has text_cfg.tokenizer_kwargs with 'tokenizer_file', expected none but",
    ),
    tower(
        "a vocabulary elsewhere on the machine, which is not read",
        entries("tokenizer_config.json", vocab_file="/etc/passwd"),
        "read: 24 numbers",
    ),
    tower(
        "an encoder outside of the folder",
        in_text(hf_model_name="../../etc"),
        "refused: text_cfg.hf_model_name: expected a folder in the tower's own, such as '.', or a repository of",
    ),
    tower(
        "an encoder at an absolute path",
        in_text(hf_model_name="/proc/self"),
        "refused: text_cfg.hf_model_name: expected a folder in the tower's own, such as '.', or a repository of",
    ),
    tower(
        "a tokenizer of 1 GiB",
        large("tokenizer.json"),
        "refused: tokenizer.json: expected a file of at most 128 MiB, got 1,024.0 MiB",
    ),
    tower(
        "a tokenizer's configuration of 1 GiB",
        large("tokenizer_config.json"),
        "refused: tokenizer_config.json: expected a file of at most 4 MiB, got 1,024.0 MiB",
    ),
    tower(
        "an encoder's configuration of 1 GiB",
        large("config.json"),
        "refused: config.json: expected a file of at most 4 MiB, got 1,024.0 MiB",
    ),
    tower(
        "brackets without end for an encoder",
        content("config.json", "[" * 100_000),
        "refused: config.json: expected a configuration of transformers' as JSON, got maximum recursion depth",
    ),
    tower(
        "brackets without end for a tokenizer",
        content("tokenizer.json", "[" * 100_000),
        "expected the files of the tokenizer of 'local-dir:",
    ),
    tower(
        "a pipe for an encoder's configuration",
        pipe("config.json"),
        "refused: config.json: expected a configuration of transformers', found no such file",
    ),
    tower("a pipe for a tokenizer", pipe("tokenizer.json"), "such as tokenizer.json, found none; "),
    tower(
        "a tokenizer that would know no word",
        no_words,
        "such as tokenizer.json, found none; the tokenizer's own save_pretrained(FOLDER) writes them",
    ),
    tower(
        "a tokenizer's pattern of exponential time",
        slow_pattern,
        "refused: the tokenizer gave up: Onig: Regex search error: retry-limit-in-match over",
        sentence="a" * 40 + "!",
        encoder=ROBERTA,
    ),
    tower(
        "padding in the middle of a label",
        lambda folder: None,
        "refused: prompt 'a <pad> dog': expected the padding token 1 only after its end",
        sentence="a <pad> dog",
        encoder=ROBERTA,
    ),
    tower(
        "an encoder of half precision, read in single",
        entries("config.json", torch_dtype="float16"),
        "read: 24 numbers",
    ),
)
