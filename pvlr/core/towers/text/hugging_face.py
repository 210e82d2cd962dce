"""Hugging Face text encoders in open_clip models: BERT, RoBERTa, XLM-R, mT5 and NLLB, with learnable context."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pvlr.core.functional import splice_context
from pvlr.core.protocols import PromptTokens
from pvlr.core.towers.errors import TowerError, shown
from pvlr.core.towers.text.base import FrozenTextTower

__all__ = ["HFTextTower", "text_config_file"]

# The classes of the model types that open_clip supports, and the number of their positions that no text can use.
ENCODERS = {
    "BertModel": 0,
    "RobertaModel": 1,
    "XLMRobertaModel": 1,
    "MT5Stack": 0,
    "M2M100Encoder": 0,
}
POOLERS = ("MeanPooler", "ClsPooler", "ClsLastHiddenStatePooler")
# Entries of a configuration about its location, writer or implementation, which do not change the result.
NOT_ARCHITECTURE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class HFTextTower(FrozenTextTower):
    """The text half of an open_clip model with a Hugging Face encoder, permanently frozen.

    These encoders attend in both directions but never to padding, and their positions count from the first token: a run
    that ends with the longest prompt in use is exact. The context is inserted among the token embeddings
    (``inputs_embeds``), where NLLB's are scaled already; positions, token types and language codes are the encoder's.

    Attributes:
        dim: Width of the joint space (``d``).
        width: Width of a token embedding (``w``).
        context_length: Maximum number of tokens of a prompt (``t``).
        path: ``"plain"``: nothing is shared between labels.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[..., Tensor],
        *,
        config: Mapping[str, Any],
        context_length: int = 77,
    ) -> None:
        """Wrap the text modules of ``model``.

        Args:
            model: An ``open_clip.CustomTextCLIP`` whose text tower is an ``HFTextEncoder``; its parameters are shared,
                and frozen.
            tokenizer: Called as ``tokenizer(texts, context_length=t)``, returns int64 ``s t``, padded on the right.
            config: Entries of the encoder's ``config.json``.
            context_length: Maximum number of tokens of a prompt; the encoder itself may have more positions.

        Raises:
            TowerError: naming the class or setting that is not supported.
        """
        super().__init__(tokenizer)
        encoder = _encoder_of(model)
        self.transformer: Any = encoder.transformer
        self.pooler, self.proj = encoder.pooler, encoder.proj
        self.config = {name: config[name] for name in config if name not in NOT_ARCHITECTURE}
        self._positions = getattr(encoder.config, "max_position_embeddings", None)
        self.path = "plain"
        self.context_length = context_length
        self.width = int(self._table().weight.shape[1])
        self._pad = _padding(encoder.config)
        self._require_room()
        self.requires_grad_(False)
        self.train(False)
        # Errors of an unusual configuration are raised here, and not at the first label.
        self.dim = int(self.encode(["a photo"]).shape[1])

    @property
    def architecture(self) -> dict[str, Any]:
        """The entries of the encoder's own configuration."""
        return {"text_encoder": self.config}

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "s d"]:
        """Encode plain sentences, see :meth:`FrozenTextTower.encode`."""
        ids = self._tokenize(sentences)
        ids = ids[:, : int(self._ends(ids, sentences).max()) + 1].to(self._table().weight.device)
        return self._run(ids, input_ids=ids)

    def encode_context(
        self, context: Float[Tensor, "m w"] | Float[Tensor, "c m w"], prompts: PromptTokens
    ) -> Float[Tensor, "c d"]:
        """Encode prompts with ``context``, see :meth:`FrozenTextTower.encode_context`."""
        self._expect_context(context, prompts)
        ids = prompts.ids[:, : prompts.used].to(self._table().weight.device)
        embeddings = self.embed(ids)
        return self._run(ids, inputs_embeds=splice_context(embeddings, context.to(embeddings), prompts.start))

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return f"path={self.path!r}, dim={self.dim}, width={self.width}, context_length={self.context_length}"

    def _run(self, ids: Int[Tensor, "s t"], **given: Tensor) -> Float[Tensor, "s d"]:
        mask = (ids != self._pad).long()
        vectors: Tensor = self.proj(self.pooler(self.transformer(attention_mask=mask, **given), mask))
        return vectors

    def _table(self) -> Any:
        return self.transformer.get_input_embeddings()

    def _ends(self, ids: Int[Tensor, "s t"], sentences: Sequence[str]) -> Int[Tensor, " s"]:
        is_token = ids != self._pad
        count = is_token.sum(dim=1)
        # Padding between tokens would be masked, and shift the positions of RoBERTa and NLLB from ids, but not from
        # embeddings.
        apart = (is_token != (torch.arange(ids.shape[1]) < count[:, None])).any(dim=1)
        self._refuse_some(sentences, apart, f"expected the padding token {self._pad} only after its end")
        self._refuse_some(sentences, count == 0, "expected at least one token, its tokenizer makes none")
        return count - 1

    def _require_room(self) -> None:
        empty = self.tokenizer([""], context_length=self.context_length)[0]
        if int(empty[-1]) != self._pad:
            raise TowerError(
                f"text tower: expected a tokenizer that pads on the right with {self._pad}, as the encoder's "
                f"configuration says, got {int(empty[-1])} at the end of an empty text"
            )
        if self._positions is None:  # mT5 has relative positions alone
            return
        most = int(self._positions) - ENCODERS[type(self.transformer).__name__] * (self._pad + 1)
        if self.context_length > most:
            raise TowerError(
                f"text tower: expected text_cfg.context_length to be at most the {most} positions of the encoder, "
                f"got {self.context_length}"
            )


def text_config_file(tower: HFTextTower) -> bytes:
    """Return the ``config.json`` for the folder of ``text_cfg.hf_model_name``, which builds the same encoder."""
    return f"{json.dumps(tower.config, indent=1)}\n".encode()


def _encoder_of(model: nn.Module) -> Any:
    from open_clip import CustomTextCLIP
    from open_clip.hf_model import HFTextEncoder

    encoder: Any = getattr(model, "text", None)
    if type(model) is not CustomTextCLIP or type(encoder) is not HFTextEncoder:
        raise TowerError(
            "text tower: expected an open_clip CustomTextCLIP with an HFTextEncoder, "
            f"got {type(model).__name__} with {type(encoder).__name__}"
        )
    for part, known in (("transformer", ENCODERS), ("pooler", POOLERS)):
        found = type(getattr(encoder, part)).__name__
        if found not in known:
            raise TowerError(f"text tower: expected the {part} to be one of {', '.join(known)}, got {found}")
    if not hasattr(encoder, "proj"):  # an error that open_clip would raise at the first text
        width = encoder.transformer.get_input_embeddings().weight.shape[1]
        raise TowerError(
            f"text tower: the encoder's vectors are {width} wide and those of the joint space {encoder.output_dim}; "
            "set text_cfg.hf_proj_type to 'linear' or 'mlp'"
        )
    return encoder


def _padding(config: Any) -> int:
    pad = config.pad_token_id
    if type(pad) is not int:
        raise TowerError(f"text tower: expected the encoder's pad_token_id to be a number, got {shown(pad)}")
    return pad
