"""Heads of other works against what their published code computes: the same weights in, the same numbers out.

Only names and layouts are translated here; every value is theirs. Deviations are explained where they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pvlr.core.labels import LabelSet
from pvlr.core.models.baselines import BaselineConfig, BaselineModel, paired_scores
from pvlr.core.models.decoders import GroupDecoder, LabelDecoder, sine_places
from pvlr.core.towers.text.open_clip import OpenClipTextTower

Arrays = Mapping[str, Any]
HEADS = 2


@pytest.fixture
def golden(shared: Path) -> Any:
    def read(name: str) -> Arrays:
        with np.load(shared / "golden" / f"head_{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return read


def tensors(arrays: Arrays, start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): torch.from_numpy(x) for key, x in arrays.items() if key.startswith(start)}


def attention(theirs: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Torch keeps the three projections in one matrix. Ours has no bias of the keys, which a softmax does not see."""
    found = dict(zip(("q_proj", "k_proj", "v_proj"), theirs[f"{name}.in_proj_weight"].chunk(3), strict=True))
    weights = {f"{part}.weight": value for part, value in found.items()}
    query_bias, _, value_bias = theirs[f"{name}.in_proj_bias"].chunk(3)
    out = {f"out_proj.{part}": theirs[f"{name}.out_proj.{part}"] for part in ("weight", "bias")}
    return weights | {"q_proj.bias": query_bias, "v_proj.bias": value_bias} | out


def layer(theirs: Mapping[str, Tensor], name: str, attends: str, norms: tuple[str, str]) -> dict[str, Tensor]:
    parts = {"norm_attended": norms[0], "norm": norms[1], "up": "linear1", "down": "linear2"}
    rest = {f"{own}.{part}": theirs[f"{name}.{x}.{part}"] for own, x in parts.items() for part in ("weight", "bias")}
    return {f"attention.{key}": x for key, x in attention(theirs, f"{name}.{attends}").items()} | rest


def inside(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in state.items()}


def query2label(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = inside("encoder.0", layer(theirs, "transformer.encoder.layers.0", "self_attn", ("norm1", "norm2")))
    for number in range(2):
        name = f"transformer.decoder.layers.{number}"
        found |= inside(f"decoder.{number}", layer(theirs, name, "multihead_attn", ("norm2", "norm3")))
    norm = {f"norm.{part}": theirs[f"transformer.decoder.norm.{part}"] for part in ("weight", "bias")}
    last = {"queries": theirs["query_embed.weight"], "weight": theirs["fc.W"][0], "bias": theirs["fc.b"][0]}
    return found | norm | last


def ml_decoder(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    theirs = {key.removeprefix("decoder."): value for key, value in theirs.items()}
    found = inside("layer", layer(theirs, "layers.0", "multihead_attn", ("norm2", "norm3")))
    for own, name in (("norm", "layers.0.norm1"), ("projection", "embed_standart")):
        found |= {f"{own}.{part}": theirs[f"{name}.{part}"] for part in ("weight", "bias")}
    found |= {"weight": theirs["duplicate_pooling"], "bias": theirs["duplicate_pooling_bias"]}
    # Theirs are not trained: there is no gradient of them.
    return found | ({"queries": theirs["query_embed.weight"]} if "query_embed.weight" in theirs else {})


def close(found: Tensor, theirs: Tensor, name: str) -> None:
    """Compare to 1e-5 of the largest value: gradients of hundreds are sums of what nearly cancels, in float32."""
    error = (found - theirs).abs().max() / theirs.abs().max().clamp_min(1.0)
    assert found.shape == theirs.shape
    assert error < 1e-5, f"{name}: {error:.1e}"


def check(module: nn.Module, out: Tensor, arrays: Arrays, gradients: Mapping[str, Tensor]) -> None:
    """Compare outputs, and the gradients of every parameter of the module."""
    close(out, torch.from_numpy(arrays["out"]), "out")
    (out * torch.from_numpy(arrays["out_weight"])).sum().backward()
    found = {name: x.grad for name, x in module.named_parameters() if x.requires_grad}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        close(found[name], gradient, name)


def test_the_label_decoder_is_query2label(golden: Any) -> None:
    arrays = golden("q2l_d64_C20")
    close(sine_places(7, 64), torch.from_numpy(arrays["pos"])[0].flatten(1).T, "places")
    head = LabelDecoder(classes=20, grid=7, source_dim=64, dim=64, hidden=128)
    head.load_state_dict(query2label(tensors(arrays, "sd.")))
    feats = torch.from_numpy(arrays["feats"]).requires_grad_()  # b d row column
    check(head, head(feats.flatten(2).transpose(1, 2)), arrays, query2label(tensors(arrays, "grad.")))
    close(feats.grad, torch.from_numpy(arrays["grad_feats"]), "feats")


def test_the_group_decoder_is_ml_decoder(golden: Any) -> None:
    arrays = golden("ml_decoder_full_C20")
    head = GroupDecoder(classes=20, groups=20, source_dim=48, dim=64)
    head.load_state_dict(ml_decoder(tensors(arrays, "sd.")))
    feats = torch.from_numpy(arrays["feats"]).requires_grad_()
    check(head, head(feats), arrays, ml_decoder(tensors(arrays, "grad.")))
    close(feats.grad, torch.from_numpy(arrays["grad_feats"]), "feats")


class NoImages(nn.Module):
    """Stand-in for an image tower: their heads were given features."""

    dim, image_size, grid = 32, 32, 7


def text_tower(arrays: Arrays, sentences: int) -> OpenClipTextTower:
    """Their text tower. Of the token embeddings only those of their prompts are known."""
    import open_clip

    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": HEADS, "layers": 2}
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    model = open_clip.CLIP(embed_dim=32, text_cfg=text, vision_cfg=vision, quick_gelu=True)
    theirs = tensors(arrays, "sd.text_encoder.")
    own = {name: x for name, x in theirs.items() if name in model.state_dict()}
    assert own.keys() == theirs.keys()
    model.load_state_dict(own, strict=False)
    learner, ids = tensors(arrays, "sd.prompt_learner."), torch.from_numpy(arrays["tokenized"])[:sentences].long()
    sign = "" if "token_prefix" in learner else "_pos"
    with torch.no_grad():
        model.token_embedding.weight[ids[:, :1]] = learner[f"token_prefix{sign}"]
        model.token_embedding.weight[ids[:, 17:]] = learner[f"token_suffix{sign}"]
    return OpenClipTextTower(model, open_clip.get_tokenizer("ViT-B-32"))


def labels_of(arrays: Arrays) -> LabelSet:
    return LabelSet(tuple(str(name) for name in arrays["classnames"]))


def test_the_prompted_cosine_is_coop(golden: Any) -> None:
    arrays = golden("coop_cscFalse_C20")
    model = BaselineModel(BaselineConfig(kind="coop"), labels_of(arrays), text_tower(arrays, 20), NoImages())
    assert torch.equal(model.prompt_ids, torch.from_numpy(arrays["tokenized"]).long())
    theirs = tensors(arrays, "sd.")
    scale = {"log_scale": theirs["logit_scale"], "bias": torch.zeros(())}  # Theirs is a softmax's, without.
    model.head.load_state_dict({"prompter.context": theirs["prompt_learner.ctx"], **scale})
    for value in (model.head.log_scale, model.head.bias):
        value.requires_grad_(False)
    feats = torch.from_numpy(arrays["feats"]).requires_grad_()
    close(model.head.prompter.encode(model.text, model.prompts), unit(arrays["text_features"]), "text")
    gradient = {"head.prompter.context": torch.from_numpy(arrays["grad.prompt_learner.ctx"])}
    check(model, model.forward_features(feats.unsqueeze(1)).logits, arrays, gradient)
    close(feats.grad, torch.from_numpy(arrays["grad_feats"]), "feats")


def test_the_dual_prompter_is_dualcoop(golden: Any) -> None:
    arrays = golden("dualcoop_cscFalse_C20")
    model = BaselineModel(BaselineConfig(kind="dualcoop"), labels_of(arrays), text_tower(arrays, 20), NoImages())
    theirs = tensors(arrays, "sd.prompt_learner.")
    assert torch.equal(model.prompt_ids, theirs["tokenized_prompts"][:20])
    model.head.load_state_dict({"positive.context": theirs["ctx_pos"], "negative.context": theirs["ctx_neg"]})
    feats = torch.from_numpy(arrays["feats"]).requires_grad_()  # b d n
    positive, negative = model.head(model.text, model.prompts)
    close(torch.cat([negative, positive]), unit(arrays["text_features"]), "text")
    pair = paired_scores(feats.transpose(1, 2), positive, negative)
    assert_close(model.forward_features(feats.transpose(1, 2)).logits, pair[0] - pair[1])
    gradients = {
        f"{own}.context": torch.from_numpy(arrays[f"grad.prompt_learner.ctx_{name}"])
        for own, name in (("positive", "pos"), ("negative", "neg"))
    }
    check(model.head, torch.stack(pair[::-1], dim=1), arrays, gradients)
    close(feats.grad, torch.from_numpy(arrays["grad_feats"]), "feats")


def unit(vectors: np.ndarray) -> Tensor:
    return nn.functional.normalize(torch.from_numpy(vectors), dim=-1)
