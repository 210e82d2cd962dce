"""The formulas of PVLR without parameters, as pure functions of tensors."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pvlr.core.arguments import require_choice, require_int, require_number
from pvlr.core.shapes import ShapeError, expect, expect_broadcast

__all__ = [
    "attend",
    "attention_map",
    "by_rows",
    "cosine_scores",
    "fuse_maps",
    "gate",
    "merge_heads",
    "pool_regions",
    "prior_bias",
    "splice_context",
    "split_heads",
    "standardise",
    "upcast",
    "without_autocast",
]

ROWS_AT_ONCE = 1024
"""Labels or patches that are computed at a time where there are more of them, see :func:`by_rows`."""
ROWS_KEPT = 2048
"""The same with gradients, where each part is computed once more for the backward pass: only of more than these."""


def upcast(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is that already.

    Scores, maps and losses are computed in this dtype, also under autocast (law 8 of the method).

    Example:
        >>> upcast(torch.zeros(1, dtype=torch.bfloat16)).dtype, upcast(torch.zeros(1, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the tensor's device, for computing with :func:`upcast` tensors.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.zeros(1)):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    # The meta device has no autocast, and raises an error even where it is disabled.
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def standardise(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Apply a layer norm without parameters: every vector minus its mean, over its standard deviation.

    Before a projection, scale and shift are redundant: the projection contains them. Without them a frozen tower's
    patches need no gradient.

    Example:
        >>> standardise(torch.tensor([1.0, 3.0]))
        tensor([-1.0000,  1.0000])
    """
    return F.layer_norm(x, x.shape[-1:])


def spread(x: Float[Tensor, "... d"]) -> Float[Tensor, "... 1"]:
    """Return the standard deviation of each vector's entries: what :func:`standardise` divides by.

    Example:
        >>> spread(torch.tensor([1.0, 3.0]))
        tensor([1.])
    """
    return x.std(dim=-1, keepdim=True, correction=0)


def split_heads(x: Float[Tensor, "... n he"], heads: int) -> Float[Tensor, "... h n e"]:
    """Split the last axis into heads: channel ``h * e_size + e`` goes to head ``h``.

    Raises:
        ShapeError: where the last axis does not split evenly.

    Example:
        >>> split_heads(torch.arange(4.0).view(1, 4), heads=2).tolist()
        [[[0.0, 1.0]], [[2.0, 3.0]]]
    """
    require_int("heads", heads, least=1)
    if expect("x", x, "... n d")["d"] % heads:
        raise ShapeError(f"x: expected axes '... n (h e)' with h={heads}, got shape {tuple(x.shape)}")
    return rearrange(x, "... n (h e) -> ... h n e", h=heads)


def merge_heads(x: Float[Tensor, "... h n e"]) -> Float[Tensor, "... n he"]:
    """Undo :func:`split_heads`.

    Raises:
        ShapeError: where ``x`` is not ``... h n e``.

    Example:
        >>> merge_heads(split_heads(torch.arange(4.0).view(1, 4), heads=2)).tolist()
        [[0.0, 1.0, 2.0, 3.0]]
    """
    expect("x", x, "... h n e")
    return rearrange(x, "... h n e -> ... n (h e)")


def attend(
    query: Float[Tensor, "... h q e"],
    key: Float[Tensor, "... h k e"],
    value: Float[Tensor, "... h k f"],
    mask: Bool[Tensor, "... #q #k"] | Float[Tensor, "... #q #k"] | None = None,
) -> Float[Tensor, "... h q f"]:
    """Compute ``softmax(query keyᵀ / √e) value`` by fused attention, without the ``q k`` map in memory.

    Leading axes broadcast: labels without a batch axis may attend to a batch of patches.

    Args:
        query: ``... h q e``.
        key: ``... h k e``.
        value: ``... h k f``.
        mask: Bool (True: may attend) or float (added before the softmax, −∞: may not), of two axes or more that
            broadcast to ``... h q k``. A query that may attend to nothing gets zeros.

    Raises:
        ShapeError: where the axes do not fit, or the leading ones do not broadcast.

    Example:
        >>> key, value = torch.eye(2)[None], torch.tensor([[[1.0], [3.0]]])
        >>> attend(torch.zeros(1, 1, 2), key, value)
        tensor([[[2.]]])
    """
    axes = _check_factors(query, key)
    expect("value", value, "... h k f", like=query, h=axes["h"], k=axes["k"])
    batch = expect_broadcast("query, key, value", "leading axes", query.shape[:-3], key.shape[:-3], value.shape[:-3])
    if mask is not None:
        mask = _check_mask(mask, query, (*batch, axes["h"], axes["q"], axes["k"]))
    # The fused kernels require a leading axis; without it the fallback would store the whole map.
    if not batch:
        query, key, value = query[None], key[None], value[None]
    else:
        query, key, value = (x.expand(*batch, *x.shape[-3:]) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out if batch else out[0]


def attention_map(
    query: Float[Tensor, "... h q e"],
    key: Float[Tensor, "... h k e"],
    mask: Bool[Tensor, "... #q #k"] | Float[Tensor, "... #q #k"] | None = None,
) -> Float[Tensor, "... h q k"]:
    """Compute ``softmax(query keyᵀ / √e)``, the map that :func:`attend` applies, in float32.

    Args:
        query: ``... h q e``.
        key: ``... h k e``; leading axes broadcast.
        mask: As in :func:`attend`; a row whose every entry is False (or −∞) is all zeros, as there.

    Returns:
        Weights ``... h q k`` in [0, 1], each row summing to 1; float64 for float64 inputs.

    Raises:
        ShapeError: where the axes do not fit, or the leading ones do not broadcast.

    Example:
        >>> attention_map(torch.zeros(1, 1, 2), torch.eye(2)[None])
        tensor([[[0.5000, 0.5000]]])
    """
    axes = _check_factors(query, key)
    batch = expect_broadcast("query, key", "leading axes", query.shape[:-3], key.shape[:-3])
    if mask is not None:
        mask = _check_mask(mask, query, (*batch, axes["h"], axes["q"], axes["k"]))
    with without_autocast(query):
        scores = upcast(query) @ upcast(key).transpose(-2, -1) / math.sqrt(query.shape[-1])
        if mask is None:
            return scores.softmax(dim=-1)
        if mask.dtype != torch.bool:
            scores, mask = scores + mask, mask != -math.inf
        weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
        return weights.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)


def _check_factors(query: Tensor, key: Tensor) -> dict[str, int]:
    axes = expect("query", query, "... h q e", dtype="float")
    return axes | expect("key", key, "... h k e", like=query, h=axes["h"], e=axes["e"])


def _check_mask(mask: Tensor, query: Tensor, shape: tuple[int, ...]) -> Tensor:
    is_bool = isinstance(mask, Tensor) and mask.dtype == torch.bool
    expect("mask", mask, "... q k", dtype="bool" if is_bool else "float", device=query.device)
    # A mask of more axes or larger ones would broadcast the map beyond the shape of its factors.
    axes = zip(mask.shape[::-1], shape[::-1], strict=False)
    if mask.dim() > len(shape) or any(size not in (1, whole) for size, whole in axes):
        raise ShapeError(f"mask: expected axes that broadcast to the map's {shape}, got shape {tuple(mask.shape)}")
    if mask.dtype in (torch.bool, query.dtype):
        return mask
    # Finite values stay finite in the query's dtype: a row of -1e9 may attend, one of −∞ may not.
    narrow, limits = mask.to(query.dtype), torch.finfo(query.dtype)
    return torch.where(mask.isinf(), narrow, narrow.clamp(limits.min, limits.max))


def by_rows(compute: Callable[..., Tensor], *inputs: Shaped[Tensor, "... rows _"], join: int = -2) -> Tensor:
    """Return ``compute(*inputs)``, computed for at most :data:`ROWS_AT_ONCE` rows at a time.

    With gradients only of more than :data:`ROWS_KEPT` rows, and each part once more in the backward pass. Exact where
    ``compute`` treats each row (of axis −2: a label, a patch) independently; then ten thousand labels need the memory
    of a thousand.

    Args:
        compute: Function of the same number of rows of each input; its result has an axis of these rows.
        *inputs: Tensors with the same number of rows.
        join: The axis of the rows in the result of ``compute``.

    Example:
        >>> by_rows(lambda x, y: x + y, torch.ones(2000, 1), torch.ones(2000, 1)).shape
        torch.Size([2000, 1])
    """
    # A traced graph must be valid for any number of labels.
    count, with_gradient = inputs[0].shape[-2], torch.is_grad_enabled()
    if torch.compiler.is_compiling() or count <= (ROWS_KEPT if with_gradient else ROWS_AT_ONCE):
        return compute(*inputs)
    run = partial(checkpoint, compute, use_reentrant=False, preserve_rng_state=False) if with_gradient else compute
    parts = zip(*(x.split(ROWS_AT_ONCE, dim=-2) for x in inputs), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([run(*part) for part in parts], dim=join)


def gate(logits: Float[Tensor, "..."], a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Compute ``σ(logits) a + (1 − σ(logits)) b``, elementwise with broadcasting.

    Args:
        logits: The share of ``a``, before the sigmoid.
        a: Result where the share is 1.
        b: Result where the share is 0.

    Raises:
        ShapeError: where the shapes do not broadcast.

    Example:
        >>> gate(torch.tensor([0.0, 100.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]))
        tensor([2., 1.])
    """
    expect("logits", logits, "...", dtype="float")
    for name, tensor in (("a", a), ("b", b)):
        expect(name, tensor, "...", dtype="float", device=logits.device)
    expect_broadcast("logits, a, b", "axes", logits.shape, a.shape, b.shape)
    share = torch.sigmoid(logits)
    return share * a + (1 - share) * b


def fuse_maps(
    map_a: Float[Tensor, "... h q k"], map_b: Float[Tensor, "... h q k"], mix: Float[Tensor, " h"]
) -> Float[Tensor, "... h q k"]:
    """Compute ``mix_h · map_a + (1 − mix_h) · map_b`` for each head; with ``mix`` in [0, 1] rows still sum to 1.

    Args:
        map_a: ``... h q k``.
        map_b: ``... h q k``; leading axes broadcast.
        mix: ``h``, the share of ``map_a`` in each head.

    Raises:
        ShapeError: where the axes do not fit.

    Example:
        >>> fuse_maps(torch.ones(1, 1, 2), torch.zeros(1, 1, 2), torch.tensor([0.25]))
        tensor([[[0.2500, 0.2500]]])
    """
    axes = expect("map_a", map_a, "... h q k", dtype="float")
    expect("map_b", map_b, "... h q k", dtype="float", device=map_a.device, **axes)  # type: ignore[arg-type]
    expect("mix", mix, "h", dtype="float", device=map_a.device, h=axes["h"])
    expect_broadcast("map_a, map_b", "leading axes", map_a.shape[:-3], map_b.shape[:-3])
    share = mix[:, None, None]
    return share * map_a + (1 - share) * map_b


def cosine_scores(
    image: Float[Tensor, "b n d"],
    labels: Float[Tensor, "b c d"] | Float[Tensor, "c d"],
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
) -> Float[Tensor, "b n c"]:
    """Compute ``scale · cos(image, labels) + bias`` for every patch and label, in float32 even under autocast.

    Args:
        image: Patch vectors ``b n d``.
        labels: Label vectors, ``c d`` for all images or ``b c d`` for each; none has to be normalised.
        scale: Factor of the cosine.
        bias: Added to the scaled cosine.

    Returns:
        Scores ``b n c``, float32 (float64 for float64 inputs). A zero vector scores ``bias``.

    Raises:
        ShapeError: where the axes do not fit.

    Example:
        >>> cosine_scores(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), scale=10.0)
        tensor([[[6., 8.]]])
    """
    axes = expect("image", image, "b n d", dtype="float")
    if not isinstance(labels, Tensor) or labels.dim() == 2:
        expect("labels", labels, "c d", dtype="float", device=image.device, d=axes["d"])
    else:
        expect("labels", labels, "b c d", dtype="float", device=image.device, b=axes["b"], d=axes["d"])
    if upcast(image).dtype != upcast(labels).dtype:
        raise ShapeError(f"labels: expected a tensor of dtype {image.dtype}, got {labels.dtype}")
    with without_autocast(image):
        patches, classes = upcast(image), upcast(labels)
        # Dividing the products by the lengths costs less than dividing the vectors, and so do the gradients.
        of_patch, of_label = (torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-12) for x in (patches, classes))
        products = patches @ classes.transpose(-2, -1)
        scores: Tensor = products / of_patch.unsqueeze(-1) * (scale / of_label).unsqueeze(-2) + bias
        return scores


def pool_regions(
    scores: Float[Tensor, "b n c"], how: Literal["max", "mean", "softmax"] = "max", temperature: float = 0.1
) -> Float[Tensor, "b c"]:
    """Aggregate the scores of the patches into one score per label, each label independently.

    Args:
        scores: ``b n c``, at least one patch.
        how: ``"max"``, ``"mean"``, or ``"softmax"``: ``Σ_n softmax_n(s / τ) s``, which lies between the two.
        temperature: ``τ > 0`` in units of the scores, read by ``"softmax"`` alone; towards 0 it is the maximum,
            towards ∞ the mean.

    Raises:
        ShapeError: where ``scores`` is not ``b n c`` or has no patch.
        ValueError: where ``how`` is unknown or ``temperature`` is not positive.

    Example:
        >>> scores = torch.tensor([[[0.0], [2.0]]])
        >>> pool_regions(scores, "max").item(), pool_regions(scores, "mean").item()
        (2.0, 1.0)
    """
    if expect("scores", scores, "b n c", dtype="float")["n"] == 0:
        raise ShapeError(f"scores: expected at least one patch on axis n of 'b n c', got shape {tuple(scores.shape)}")
    require_choice("how", how, ("max", "mean", "softmax"))
    with without_autocast(scores):
        scores = upcast(scores)
        if how == "max":
            return scores.amax(dim=1)
        if how == "mean":
            return scores.mean(dim=1)
        require_number("temperature", temperature, above=0.0)
        return ((scores / temperature).softmax(dim=1) * scores).sum(dim=1)


def splice_context(
    embeddings: Float[Tensor, "c t w"], context: Float[Tensor, "m w"] | Float[Tensor, "c m w"], start: int
) -> Float[Tensor, "c t w"]:
    """Replace positions ``start … start + m − 1`` of every prompt by the context; all others keep their values.

    Args:
        embeddings: Token embeddings ``c t w``.
        context: ``m w`` shared by all labels, or ``c m w``, one per label.
        start: First position replaced.

    Raises:
        ShapeError: where the widths or label counts differ.
        ValueError: where the context does not fit between ``start`` and the end of the prompt.

    Example:
        >>> splice_context(torch.zeros(1, 4, 1), torch.ones(2, 1), start=1).flatten().tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    axes = expect("embeddings", embeddings, "c t w", dtype="float")
    if not isinstance(context, Tensor) or context.dim() == 2:
        expect("context", context, "m w", dtype="float", device=embeddings.device, w=axes["w"])
    else:
        expect("context", context, "c m w", dtype="float", device=embeddings.device, c=axes["c"], w=axes["w"])
    require_int("start", start, least=0)
    if start + (length := context.shape[-2]) > axes["t"]:
        raise ValueError(f"start: expected start + {length} context tokens within t={axes['t']}, got start={start}")
    context = context.to(embeddings.dtype).expand(axes["c"], length, axes["w"])
    return torch.cat([embeddings[:, :start], context, embeddings[:, start + length :]], dim=1)


@torch.no_grad()
def prior_bias(scores: Float[Tensor, "..."], prior: float) -> float:
    """Return the bias with which the mean probability ``σ(scores + bias)`` is ``prior``, by bisection in float64.

    Args:
        scores: Any shape, at least one score, all finite.
        prior: The mean probability, in (0, 1).

    Raises:
        ShapeError: where ``scores`` is not a tensor of floats.
        ValueError: where there is no score, one is not finite, or ``prior`` is outside (0, 1).

    Example:
        >>> round(prior_bias(torch.zeros(3), prior=0.05), 4)
        -2.9444
    """
    require_number("prior", prior, above=0.0, below=1.0)
    expect("scores", scores, "...", dtype="float")
    values = scores.detach().to("cpu", torch.float64)  # Not every accelerator has float64.
    if values.numel() == 0:
        raise ValueError(f"scores: expected at least one score, got shape {tuple(scores.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"scores: expected finite scores, got {values[~values.isfinite()][0].item():g}")
    # If all scores were the largest (smallest) one, the bias would be the lower (upper) bound.
    logit = math.log(prior) - math.log1p(-prior)
    low, high = logit - values.max().item(), logit - values.min().item()
    for _ in range(100):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if torch.sigmoid(values + middle).mean().item() < prior:
            low = middle
        else:
            high = middle
    return (low + high) / 2
