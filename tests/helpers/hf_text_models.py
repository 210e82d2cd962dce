"""Small Hugging Face text encoders of the families that open_clip names, with tokenizers that lay out texts alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

CORPUS = (
    "a photo of a dog, a cat and a traffic light.",
    "the tv monitor seen from afar stands on a small table near two red chairs.",
    "people ride bicycles past parked cars while birds fly over the old train station.",
)
WORDS = sorted({word for line in CORPUS for word in line.replace(",", " ,").replace(".", " .").split()})
LETTERS = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"))
LAYERS, HEADS = 2, 4


class Family(NamedTuple):
    """One kind of encoder.

    Attributes:
        model_type: What its configuration is registered under.
        tokenizer: Makes its tokenizer.
        config: Entries of its configuration but for the vocabulary, from a width.
    """

    model_type: str
    tokenizer: Callable[[], Any]
    config: Callable[[int], dict[str, Any]]


def write_hf_text(folder: Path, hub_name: str, *, width: int = 32) -> None:
    """Write ``config.json`` and the tokenizer's files of a small encoder of the family of a repository of the Hub."""
    from transformers import AutoConfig

    family = FAMILIES[hub_name]
    tokenizer = family.tokenizer()
    # The tables of published encoders are a little longer than their vocabularies.
    config = AutoConfig.for_model(family.model_type, vocab_size=len(tokenizer) + 3, **family.config(width))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)


def write_hf_tower(folder: Path, hub_name: str, *, width: int = 32, embed_dim: int = 24, **text: Any) -> Any:
    """Write a whole model as open_clip's ``local-dir:`` reads it, its encoder in the same folder; returns the model.

    Args:
        folder: Where to.
        hub_name: Whose family the encoder is of.
        width: Of the encoder.
        embed_dim: Of the joint space.
        text: Further entries of ``text_cfg``.
    """
    from open_clip import CustomTextCLIP
    from safetensors.torch import save_file

    from helpers.tower_models import CONFIGS, perturb

    write_hf_text(folder, hub_name, width=width)
    text_cfg = {"context_length": 24, "hf_model_name": ".", "hf_tokenizer_name": hub_name, **text}
    config = {"embed_dim": embed_dim, "vision_cfg": CONFIGS["vit"]["vision_cfg"], "text_cfg": text_cfg}
    built = config | {"text_cfg": text_cfg | {"hf_model_name": str(folder), "hf_model_pretrained": False}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = perturb(CustomTextCLIP(**built), seed=0).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "weights.safetensors")
    return model


def _pieces() -> list[tuple[str, float]]:
    """A unigram vocabulary: words at their beginning, and letters for all others."""
    return [("▁", -6.0), *((f"▁{word}", -3.0) for word in WORDS), *((letter, -5.0) for letter in LETTERS)]


def _roberta_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaTokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    model = json.loads(trained.to_str())["model"]
    vocabulary = {**model["vocab"], "<mask>": len(model["vocab"])}
    return RobertaTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in model["merges"]])


def _xlm_roberta_tokenizer() -> Any:
    from transformers import XLMRobertaTokenizer

    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return XLMRobertaTokenizer(vocab=[*special, *_pieces(), ("<mask>", 0.0)])


def _mt5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    return T5Tokenizer(vocab=[*special, *_pieces()], extra_ids=0)


def _nllb_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import NllbTokenizer

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trained.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=160, special_tokens=special, initial_alphabet=LETTERS, show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    # The language codes follow the vocabulary, as in NLLB's own.
    return NllbTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def _bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += dict.fromkeys([*LETTERS, *WORDS, *(f"##{letter}" for letter in LETTERS)])
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def _bert_config(width: int, **special: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        **special,
    }


def _roberta_config(width: int) -> dict[str, Any]:
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return _bert_config(width, max_position_embeddings=514, type_vocab_size=1, **special) | {"layer_norm_eps": 1e-5}


def _mt5_config(width: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "d_kv": width // HEADS,
        "d_ff": 2 * width,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": HEADS,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _nllb_config(width: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_ffn_dim": 2 * width,
        "decoder_ffn_dim": 2 * width,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "max_position_embeddings": 1024,
        "scale_embedding": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }


_ROBERTA = Family("roberta", _roberta_tokenizer, _roberta_config)
_XLM_ROBERTA = Family("xlm-roberta", _xlm_roberta_tokenizer, _roberta_config)
_MT5 = Family("mt5", _mt5_tokenizer, _mt5_config)
_NLLB = Family("m2m_100", _nllb_tokenizer, _nllb_config)
_BERT = Family(
    "bert",
    _bert_tokenizer,
    lambda width: _bert_config(width, max_position_embeddings=512, type_vocab_size=2, pad_token_id=0),
)

# Every repository that a configuration of open_clip's names, and a sentence encoder of the family of BERT.
FAMILIES = {
    "roberta-base": _ROBERTA,
    "xlm-roberta-base": _XLM_ROBERTA,
    "xlm-roberta-large": _XLM_ROBERTA,
    "google/mt5-base": _MT5,
    "google/mt5-xl": _MT5,
    "facebook/nllb-200-distilled-600M": _NLLB,
    "facebook/nllb-200-distilled-1.3B": _NLLB,
    "sentence-transformers/all-MiniLM-L6-v2": _BERT,
}
