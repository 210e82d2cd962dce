"""Files beside a model of transformers', and their places: tokenizer, preprocessing, repository on the Hub."""

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.tower_models import SENTENCES
from helpers.weight_files import WORDS, change_json, hf_config, same_vectors, write_transformers, write_words
from safetensors.torch import load_file

from pvlr.core.towers import TowerError, load_towers
from pvlr.core.towers.files import sources
from pvlr.core.towers.files.transformers_folder import THEIR_WEIGHT_NAMES

transformers = pytest.importorskip("transformers")
NAME = "local-dir:{}"
SOME_SENTENCES = ("a photo of a dog.", "a traffic light", "TV monitor seen from a dog")


# ------------------------------------------------------------------------------------------------------- tokenizers


def _write_clips_tokenizer(folder: Path, swap: bool) -> None:
    """CLIP's tokenizer as transformers keeps it, its vocabulary read from open_clip's; or two words in other places."""
    own = open_clip.SimpleTokenizer()
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(piece, piece): number
        for piece, number in own.encoder.items()
    }
    if swap:
        vocabulary["dog</w>"], vocabulary["photo</w>"] = vocabulary["photo</w>"], vocabulary["dog</w>"]
    merges = [pair for pair, _ in sorted(own.bpe_ranks.items(), key=lambda item: item[1])]
    transformers.CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)


def test_clip_s_own_vocabulary_needs_no_tokenizer_of_transformers(tmp_path):
    model = write_transformers(tmp_path, hf_config("clip"))
    _write_clips_tokenizer(tmp_path, swap=False)
    towers = load_towers(NAME.format(tmp_path))
    assert isinstance(towers.text.tokenizer, open_clip.SimpleTokenizer)
    assert "hf_tokenizer_name" not in towers.config["text_cfg"]
    same_vectors(towers, model, SENTENCES, 24)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for sentence, row in zip(SENTENCES, towers.text.tokenizer(list(SENTENCES), context_length=24), strict=True):
        ids = theirs(sentence).input_ids
        assert row[: len(ids)].tolist() == ids
        assert row[len(ids) :].sum() == 0
    first = towers.fingerprint
    (tmp_path / "vocab.json").write_text(
        json.dumps(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"])
    )
    (tmp_path / "tokenizer.json").unlink()
    assert load_towers(NAME.format(tmp_path)).fingerprint == first


def test_another_vocabulary_is_the_folder_s_own(tmp_path):
    model = write_transformers(tmp_path, hf_config("clip"))
    _write_clips_tokenizer(tmp_path, swap=True)
    towers = load_towers(NAME.format(tmp_path))
    assert towers.config["text_cfg"]["hf_tokenizer_name"] == "."
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**theirs)
    expected = expected if torch.is_tensor(expected) else expected.pooler_output
    torch.testing.assert_close(towers.text.encode(SENTENCES), expected, rtol=1e-5, atol=1e-5)
    own = open_clip.SimpleTokenizer()(["a photo of a dog."], context_length=24)
    assert not torch.equal(towers.text.tokenizer(["a photo of a dog."], context_length=24), own)


def test_a_smaller_vocabulary_with_an_end_of_its_own(tmp_path):
    model = write_transformers(tmp_path, hf_config("clip", {"vocab_size": 40, "eos_token_id": 1, "bos_token_id": 1}))
    write_words(tmp_path)
    towers = load_towers(NAME.format(tmp_path))
    assert towers.config["text_cfg"]["pool_type"] == "eos"
    same_vectors(towers, model, SOME_SENTENCES, 24)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        TowerError, match=r"expected the files of the tokenizer of .*, such as tokenizer.json, found none"
    ):
        load_towers(NAME.format(tmp_path))


# --------------------------------------------------------------------------------------------------- preprocessing


def test_preprocessing_is_that_of_the_folder(tmp_path):
    write_transformers(tmp_path, hf_config("clip"))
    processor = transformers.CLIPImageProcessor(
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
        resample=2,
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
    )
    processor.save_pretrained(tmp_path)
    expected = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "size": 32, "interpolation": "bilinear"}
    assert load_towers(NAME.format(tmp_path)).preprocess == expected
    told = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": told}))
    assert load_towers(NAME.format(tmp_path)).preprocess == expected
    change_json(tmp_path / "processor_config.json", image_processor={"do_normalize": False})
    plain = load_towers(NAME.format(tmp_path)).preprocess
    assert (plain["mean"], plain["std"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_without_a_file_it_is_the_usual_one_and_that_is_said(kind, tmp_path, caplog):
    def said() -> list[str]:  # By pvlr alone: transformers has remarks of its own, the first time it is asked.
        return [record.getMessage() for record in caplog.records if record.name.startswith("pvlr.")]

    write_transformers(tmp_path, hf_config(kind))
    usual = transformers.CLIPImageProcessor if kind == "clip" else transformers.SiglipImageProcessor
    with caplog.at_level(logging.WARNING, logger="pvlr.core.towers.files.transformers_folder"):
        record = load_towers(NAME.format(tmp_path)).preprocess
    assert record["mean"] == tuple(usual().image_mean)
    assert record["std"] == tuple(usual().image_std)
    assert record["interpolation"] == "bicubic"
    start = f"{tmp_path}/config.json: no preprocessor_config.json beside it, so that images have the usual "
    assert said() == [f"{start}mean {list(record['mean'])} and std {list(record['std'])}"]
    caplog.clear()
    load_towers(NAME.format(tmp_path), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    load_towers(NAME.format(tmp_path), mean=(0.1, 0.2, 0.3))
    assert said() == [f"{start}std {list(record['std'])}"]


REFUSED_PREPROCESSING: dict[str, tuple[Any, str]] = {
    "a list": ([1], "expected the preprocessing of images, got \\[1\\]"),
    "another scale": ({"rescale_factor": 1.0}, "expected do_rescale with the factor 1/255, got 1.0"),
    "no scale": ({"do_rescale": False}, "expected do_rescale with the factor 1/255, got .*"),
    "another size": ({"size": {"height": 224, "width": 224}}, "expected the size of images .*, 32, got .*224.*"),
    "another edge": ({"size": {"shortest_edge": 256, "longest_edge": 32}}, "expected the size of images .*256.*"),
    "another crop": ({"do_center_crop": True, "crop_size": 224}, "expected the crop_size of .*, 32, got 224"),
    "resampling": ({"resample": 1}, "expected resample to be 0, 2 or 3, got 1"),
    "mean": ({"image_mean": [1, 2, 3]}, "expected image_mean to be three numbers in \\[0, 1\\], got \\[1, 2, 3\\]"),
    "std": ({"image_std": 0.5}, "expected image_std to be three numbers above 0, at most 1, got 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_PREPROCESSING)
def test_refused_preprocessing(case, tmp_path):
    told, message = REFUSED_PREPROCESSING[case]
    write_transformers(tmp_path, hf_config("siglip"))
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(told))
    with pytest.raises(TowerError, match=f"^{path}: {message}$"):
        load_towers(NAME.format(tmp_path))


# --------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[str]:
    """The Hub, on which ``some/where`` has the files of a folder; what is fetched is written down."""
    fetched: list[str] = []

    def there(repository: str, names: tuple[str, ...], cache_dir: str | None) -> bool:
        return repository == "some/where" and (tmp_path / names[0]).is_file()

    def download(record: dict[str, str], cache_dir: str | None = None) -> str:
        repository, name = record["hf_hub"].rsplit("/", 1)
        assert repository == "some/where"
        fetched.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr(sources, "require_reachable", there)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    return fetched


@pytest.mark.parametrize("shards", [False, True])
def test_a_repository_of_transformers_is_the_tower_of_its_folder(shards, hub, tmp_path):
    model = write_transformers(tmp_path, hf_config("clip"), **({"max_shard_size": "50KB"} if shards else {}))
    towers = load_towers("hf-hub:some/where")
    same_vectors(towers, model, SENTENCES, 24)
    assert towers.fingerprint == load_towers(NAME.format(tmp_path)).fingerprint
    weights = [name for name in hub if name.endswith((".safetensors", "index.json"))]
    parts = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert weights == (["model.safetensors.index.json", *parts] if shards else ["model.safetensors"])
    assert set(hub) == {"config.json", *weights}


def test_pickled_weights_are_the_last_that_is_looked_for(hub, tmp_path):
    write_transformers(tmp_path, hf_config("clip"))
    assert THEIR_WEIGHT_NAMES[2] == "pytorch_model.bin"
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    load_towers("hf-hub:some/where")
    assert hub[-1] == "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    load_towers("hf-hub:some/where")
    assert hub[-1] == "pytorch_model.bin"


def test_what_was_fetched_before_needs_no_network(hub, tmp_path, monkeypatch):
    cache, dead = tmp_path / "cache", OSError("the line is dead")
    snapshot = cache / "models--some--where" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    asked: list[str] = []

    def unreachable(url: str, **_: Any) -> None:
        asked.append(url)
        raise dead

    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TowerError, match=r"^Could not fetch the tower 'hf-hub:some/where': the line is dead\n"):
        load_towers("hf-hub:some/where", cache_dir=str(cache))
    asked.clear()
    model = write_transformers(snapshot, hf_config("clip"))
    same_vectors(load_towers("hf-hub:some/where", cache_dir=str(cache)), model, SENTENCES, 24)
    assert len(asked) == 1  # for open_clip's own configuration; each would take its time
    assert "open_clip_config.json" in asked[0]


def test_a_repository_without_a_configuration(hub):
    with pytest.raises(TowerError) as caught:
        load_towers("hf-hub:some/where")
    assert str(caught.value) == (
        "name: expected 'some/where' on the Hugging Face Hub to have the tower's configuration, open_clip_config.json "
        "or config.json, found neither"
    )


def test_a_repository_of_siglip_has_its_own_tokenizer(hub, tmp_path, monkeypatch):
    write_transformers(tmp_path, hf_config("siglip"))
    asked: list[str] = []
    taken = transformers.AutoTokenizer.from_pretrained

    def local(place: str, **options: Any) -> Any:
        asked.append(place)
        return taken(tmp_path)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", local)
    monkeypatch.setattr("pvlr.core.towers.text.tokenizers.require_reachable", lambda *_: True)
    towers = load_towers("hf-hub:some/where")
    assert asked == ["some/where"]
    assert towers.text.tokenizer(["a dog"], context_length=4).tolist() == [[WORDS.index("a"), WORDS.index("dog"), 1, 0]]
