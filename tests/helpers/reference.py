"""The formulas once more, as slow loops over plain numbers; nothing here calls the library.

Tensors go in and come out as nested lists of Python floats, which are float64.
"""

import math
from decimal import Decimal, localcontext

Vector = list[float]
Matrix = list[Vector]
State = dict[str, list]


# --- vectors and layers


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softmax(values: Vector) -> Vector:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


def normalise(a: Vector) -> Vector:
    length = math.sqrt(dot(a, a))
    return [x / length for x in a]


def linear(state: State, name: str, x: Vector) -> Vector:
    weight = state[f"{name}.weight"]
    bias = state.get(f"{name}.bias", [0.0] * len(weight))
    return [dot(row, x) + shift for row, shift in zip(weight, bias, strict=True)]


def standardise(x: Vector) -> Vector:
    mean = math.fsum(x) / len(x)
    variance = math.fsum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(variance + 1e-5) for v in x]


def in_units_of(x: Vector, added: Vector) -> Vector:
    """``x`` plus a vector in units of the standard deviation of its entries."""
    mean = math.fsum(x) / len(x)
    unit = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / len(x))
    return [v + unit * more for v, more in zip(x, added, strict=True)]


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


# --- functional


def head_slice(x: Vector, head: int, heads: int) -> Vector:
    width = len(x) // heads
    return x[head * width : (head + 1) * width]


def attention_map(query: Matrix, key: Matrix) -> Matrix:
    """One head: ``softmax_k(q · k / √e)``."""
    root = math.sqrt(len(query[0]))
    return [softmax([dot(q, k) / root for k in key]) for q in query]


def attend(query: Matrix, key: Matrix, value: Matrix) -> Matrix:
    return [
        [math.fsum(w * v[i] for w, v in zip(weights, value, strict=True)) for i in range(len(value[0]))]
        for weights in attention_map(query, key)
    ]


def cosine_scores(image: Matrix, labels: Matrix, scale: float, bias: float) -> Matrix:
    return [[scale * dot(normalise(patch), normalise(label)) + bias for label in labels] for patch in image]


def pool_regions(scores: Matrix, how: str, temperature: float) -> Vector:
    pooled = []
    for label in range(len(scores[0])):
        column = [row[label] for row in scores]
        if how == "max":
            pooled.append(max(column))
        elif how == "mean":
            pooled.append(math.fsum(column) / len(column))
        else:
            weights = softmax([score / temperature for score in column])
            pooled.append(dot(weights, column))
    return pooled


def splice_context(embeddings: list[Matrix], context: list[Matrix], start: int) -> list[Matrix]:
    """``context``: one ``m w`` matrix per label."""
    spliced = []
    for prompt, words in zip(embeddings, context, strict=True):
        rows = []
        for position, row in enumerate(prompt):
            inside = start <= position < start + len(words)
            rows.append(words[position - start] if inside else row)
        spliced.append(rows)
    return spliced


# --- blocks: ``state`` is the block's state dictionary as lists


def _brought(state: State, name: str, maps: list[Matrix], source: Matrix) -> Matrix:
    """Vectors that each head's map (a row of weights for each that looks) brings from the source, projected."""
    values = [linear(state, f"{name}.v_proj", row) for row in source]
    brought: Matrix = [[] for _ in maps[0]]
    for head, shares in enumerate(maps):
        columns = list(zip(*(head_slice(value, head, len(maps)) for value in values), strict=True))
        for row, weights in zip(brought, shares, strict=True):
            row.extend(dot(weights, list(column)) for column in columns)
    return [linear(state, f"{name}.out_proj", row) for row in brought]


def label_relation(state: State, labels: Matrix, heads: int) -> tuple[Matrix, list[Matrix]]:
    normed = [standardise(row) for row in labels]
    q, k = ([linear(state, f"attention.{which}_proj", row) for row in normed] for which in "qk")
    maps = [
        attention_map(*([head_slice(row, head, heads) for row in rows] for rows in (q, k))) for head in range(heads)
    ]
    brought = _brought(state, "attention", maps, normed)
    return [in_units_of(x, more) for x, more in zip(labels, brought, strict=True)], maps


def _feed_forward(state: State, name: str, x: Vector) -> Vector:
    hidden = [gelu(u) for u in linear(state, f"{name}.up", standardise(x))]
    return add(x, linear(state, f"{name}.down", hidden))


def dual_modal(
    state: State,
    labels: Matrix,
    patches: Matrix,
    *,
    heads: int,
    direction: str,
    layers: int,
    feedforward: int,
) -> tuple[Matrix, Matrix, list[list[Matrix]], list[list[Matrix]], Matrix]:
    """One image. Returns labels, patches, per layer the maps per head of both directions, and what labels gathered in
    the last layer (nothing where they do not look)."""
    label_maps, patch_maps = [], []
    gathered: Matrix = []
    for layer in range(layers if direction != "none" else 0):
        name = f"layers.{layer}"
        t, x = ([standardise(row) for row in rows] for rows in (labels, patches))
        of_labels = [linear(state, f"{name}.label_proj", row) for row in t]
        of_patches = [linear(state, f"{name}.patch_proj", row) for row in x]
        # S of each head, and how it is shared out: along its rows for the labels, along its columns for the patches.
        by_label: list[Matrix] = []
        by_patch: list[Matrix] = []
        for head in range(heads):
            q, k = ([head_slice(row, head, heads) for row in rows] for rows in (of_labels, of_patches))
            scores = [[dot(a, b) / math.sqrt(len(a)) for b in k] for a in q]
            by_label.append([softmax(row) for row in scores])
            by_patch.append([softmax([row[n] for row in scores]) for n in range(len(k))])
        # Both look at what there was before either of them had.
        if direction in ("both", "labels"):
            label_maps.append(by_label)
            gathered = _brought(state, f"{name}.labels", by_label, x)
            labels = [add(row, more) for row, more in zip(labels, gathered, strict=True)]
            if feedforward:
                labels = [_feed_forward(state, f"{name}.labels.feedforward", row) for row in labels]
        if direction in ("both", "patches"):
            patch_maps.append(by_patch)
            shown = _brought(state, f"{name}.patches", by_patch, t)
            patches = [add(row, more) for row, more in zip(patches, shown, strict=True)]
    return labels, patches, label_maps, patch_maps, gathered


def fusion(
    state: State,
    knowledge: Matrix,
    context: Matrix,
    maps: tuple[list[Matrix], list[Matrix]] | None,
    *,
    fusion: str,
    heads: int,
) -> Matrix:
    """``maps``: the dense ``h c c`` maps of knowledge and context."""
    if fusion == "knowledge":
        return knowledge
    if fusion == "context":
        return context
    if fusion == "sum":
        return [add(k, x) for k, x in zip(knowledge, context, strict=True)]
    labels = []
    for k, x in zip(knowledge, context, strict=True):
        opening = [sigmoid(v) for v in linear(state, "gate", k + x)]
        labels.append([g * a + (1 - g) * b for g, a, b in zip(opening, k, x, strict=True)])
    if maps is None:
        return labels
    values = [linear(state, "v_proj", standardise(row)) for row in labels]
    mixed: Matrix = [[] for _ in labels]
    for head in range(heads):
        share = sigmoid(state["mix_logit"][head])
        for i, row in enumerate(mixed):
            weights = [
                share * maps[0][head][i][j] + (1 - share) * maps[1][head][i][j] for j in range(len(labels))
            ]  # fmt: skip
            columns = [head_slice(value, head, heads) for value in values]
            row.extend(
                math.fsum(w * col[e] for w, col in zip(weights, columns, strict=True)) for e in range(len(columns[0]))
            )
    return [in_units_of(row, linear(state, "out_proj", more)) for row, more in zip(labels, mixed, strict=True)]


def adapted(state: State, patches: Matrix) -> Matrix:
    """The patches of one image at unit length, and nearer to the labels where the block has a hidden layer."""
    if "up.weight" not in state:
        return [normalise(x) for x in patches]
    found = []
    for x in patches:
        change = linear(state, "down", [gelu(u) for u in linear(state, "up", standardise(x))])
        found.append(normalise(add(normalise(x), change)))
    return found


def adapted_whole(state: State, pooled: Vector, source: Vector) -> Vector:
    return normalise(add(normalise(pooled), linear(state, "source", standardise(source))))


def semantic_pooling(state: State, patches: Matrix, knowledge: Matrix, gathered: Matrix | None) -> Matrix:
    """One image."""
    unit, sharpness = [normalise(x) for x in patches], math.exp(state["log_sharpness"])
    found = []
    for c, label in enumerate(knowledge):
        weights = softmax([sharpness * dot(x, normalise(label)) for x in unit])
        v = [math.fsum(w * x[i] for w, x in zip(weights, unit, strict=True)) for i in range(len(label))]
        v = v if gathered is None else add(v, gathered[c])
        found.append(_feed_forward(state, "feedforward", v) if "feedforward.up.weight" in state else v)
    return found


def label_residual(state: State, members: list[int]) -> tuple[Matrix, Matrix, Vector]:
    """Vectors added to those of the labels, their vectors among the source's features, and their biases."""
    width = len(state["vectors"][0])
    source = state.get("source", [[] for _ in state["vectors"]])
    added, own, biases = [], [], []
    for member in members:
        known = member >= 0
        added.append(state["vectors"][member] if known else [0.0] * width)
        own.append(source[member] if known else [0.0] * len(source[0]))
        biases.append(state["bias"][member] if known else 0.0)
    return added, own, biases


def similarity_head(
    state: State, patches: Matrix, labels: Matrix, looked: Matrix | None, visual: Matrix | None, whole: Vector | None
) -> Vector:
    """One image."""
    scale, of_patches = (math.exp(state[f"log_{name}"]) for name in ("scale", "patches"))
    scores = []
    for c, label in enumerate(labels):
        row = normalise(label if looked is None else looked[c])
        score = of_patches * max(dot(normalise(x), row) for x in patches)
        if visual is not None:
            score += dot(normalise(visual[c]), normalise(label))
        if whole is not None:
            score += math.exp(state["log_whole"]) * dot(normalise(whole), normalise(label))
        scores.append(scale * score + state["bias"])
    return scores


def base_scores(
    patches: Matrix,
    pooled: Vector,
    labels: Matrix,
    *,
    parts: list[str],
    scale: float,
    anchors: Matrix | None,
    members: list[int] | None,
) -> Matrix:
    """One image: a row of scores for each label."""
    found = []
    for c, label in enumerate(labels):
        cosines = [dot(normalise(x), normalise(label)) for x in patches]
        row = []
        for part in parts:
            if part == "pooled":
                row.append(scale * dot(normalise(pooled), normalise(label)))
            elif part == "best":
                row.append(scale * max(cosines))
            elif part == "focused":
                row.append(scale * dot(softmax([20 * cosine for cosine in cosines]), cosines))
            else:
                # All that share a patch out; the label comes first where it is none of the anchors.
                rivals = labels if anchors is None else anchors
                place = c if anchors is None else -1 if members is None else members[c]
                if place < 0:
                    rivals, place = [label, *rivals], 0
                shares = [
                    softmax([scale * dot(normalise(x), normalise(rival)) for rival in rivals])[place] for x in patches
                ]
                row.append(math.log(max(math.fsum(shares) / len(shares), 1e-6)))
        found.append(row)
    return found


def mixture(
    state: State, base: Matrix | None, learned: Vector | None, positives: Vector | None, shrinkage: float
) -> Vector:
    """One image, in evaluation; positives: infinitely many where all that was learned counts."""
    logits = []
    for c in range(len(learned if base is None else base)):
        logit = state["bias"]
        if base is not None:
            logit += sum(w * x / s for w, x, s in zip(state["weights"], base[c], state["spread"], strict=True))
        if learned is not None:
            n = math.inf if base is None else 0.0 if positives is None else positives[c]
            logit += (1.0 if n == math.inf else n / (n + shrinkage)) * learned[c]
        logits.append(logit)
    return logits


# --- losses


def asymmetric_term(logit: float, y: float, gamma_pos: float, gamma_neg: float, clip: float) -> float:
    """One label, in sixty decimal digits: as exact at logit −80 as at 0."""
    with localcontext() as context:
        context.prec = 60
        one, zero = Decimal(1), Decimal(0)
        p = one / (one + (-Decimal(logit)).exp())
        p_m = max(p - Decimal(clip), zero)
        positive = (one - p) ** Decimal(gamma_pos) * p.ln() if y else zero
        weight = one if gamma_neg == 0 else (zero if p_m == 0 else p_m ** Decimal(gamma_neg))
        negative = weight * (one - p_m).ln() if y != 1 else zero
        return float(-Decimal(y) * positive - (one - Decimal(y)) * negative)


def asymmetric_loss(
    logits: Matrix,
    target: Matrix,
    known: list[list[bool]],
    *,
    gamma_pos: float,
    gamma_neg: float,
    clip: float,
    reduction: str,
) -> float:
    terms = [
        asymmetric_term(x, y, gamma_pos, gamma_neg, clip)
        for row in zip(logits, target, known, strict=True)
        for x, y, k in zip(*row, strict=True)
        if k
    ]
    return math.fsum(terms) / (max(len(terms), 1) if reduction == "mean" else 1)


# --- metrics


def average_precision(scores: Vector, target: Vector, known: list[bool]) -> float:
    """One class: precision at every distinct score, weighted by the recall it adds."""
    rows = [(score, y) for score, y, k in zip(scores, target, known, strict=True) if k]
    positives = sum(1 for _, y in rows if y == 1)
    if positives == 0:
        return math.nan
    total, recall = 0.0, 0.0
    for threshold in sorted({score for score, _ in rows}, reverse=True):
        taken = [y for score, y in rows if score >= threshold]
        hits = sum(1 for y in taken if y == 1)
        total += (hits / positives - recall) * (hits / len(taken))
        recall = hits / positives
    return total


def label_ranking(scores: Vector, target: Vector, known: list[bool]) -> float:
    """One image: of the labels ranked at or above each of its own, the share that is its own; their mean."""
    labels = [(score, y) for score, y, k in zip(scores, target, known, strict=True) if k]
    own = [score for score, y in labels if y == 1]
    if not own:
        return math.nan
    return math.fsum(sum(o >= score for o in own) / sum(s >= score for s, _ in labels) for score in own) / len(own)


def hamming_loss(predicted: list[list[bool]], target: Matrix, known: list[list[bool]]) -> float:
    wrong = [
        p != (y == 1) for row in zip(predicted, target, known, strict=True) for p, y, k in zip(*row, strict=True) if k
    ]
    return sum(wrong) / len(wrong) if wrong else math.nan


def precision_recall(predicted: list[list[bool]], target: Matrix, known: list[list[bool]]) -> dict[str, float]:
    precisions, recalls, f1s = [], [], []
    all_right = all_said = all_true = 0
    for label in range(len(target[0])):
        right = said = true = 0
        for row in range(len(target)):
            if not known[row][label]:
                continue
            p, y = predicted[row][label], target[row][label] == 1
            right, said, true = right + (p and y), said + p, true + y
        all_right, all_said, all_true = all_right + right, all_said + said, all_true + true
        if true:
            precision, recall = (right / said if said else 0.0), right / true
            precisions.append(precision)
            recalls.append(recall)
            f1s.append(2 * precision * recall / (precision + recall) if right else 0.0)

    def mean(values: Vector) -> float:
        return sum(values) / len(values) if values else math.nan

    def f1(a: float, b: float) -> float:
        return 2 * a * b / (a + b) if a + b != 0 else 0.0

    cp, cr = mean(precisions), mean(recalls)
    op, overall = (all_right / all_said if all_said else 0.0), (all_right / all_true if all_true else math.nan)
    named = {"CP": cp, "CR": cr, "CF1": f1(cp, cr), "mean_F1": mean(f1s)}
    return {**named, "OP": op, "OR": overall, "OF1": f1(op, overall)}


def threshold_decisions(probabilities: Vector, target: Vector, known: list[bool]) -> list[tuple[float, int, int, int]]:
    """One class: for every threshold that decides something else, (threshold, said, right, positives)."""
    rows = [(p, y) for p, y, k in zip(probabilities, target, known, strict=True) if k]
    positives = sum(1 for _, y in rows if y == 1)
    decisions = []
    for threshold in sorted({p for p, _ in rows}):
        said = [y for p, y in rows if p >= threshold]
        decisions.append((threshold, len(said), sum(1 for y in said if y == 1), positives))
    return decisions


def negative_log_likelihood(logits: Vector, target: Vector, temperature: float) -> float:
    signed = [(x if y == 1 else -x) / temperature for x, y in zip(logits, target, strict=True)]
    return math.fsum(max(-x, 0.0) + math.log1p(math.exp(-abs(x))) for x in signed)


def reliability(probabilities: Vector, target: Vector, bins: int) -> list[tuple[float, float, int]]:
    """Per bin the mean probability, the share of positives and the number; NaN in an empty one."""
    held: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for p, y in zip(probabilities, target, strict=True):
        held[next(i for i in range(bins) if p <= (i + 1) / bins)].append((p, y))
    return [
        (math.fsum(p for p, _ in rows) / len(rows), sum(y == 1 for _, y in rows) / len(rows), len(rows))
        if rows
        else (math.nan, math.nan, 0)
        for rows in held
    ]


def calibration_error(probabilities: Vector, target: Vector, bins: int) -> float:
    found = [row for row in reliability(probabilities, target, bins) if row[2]]
    if not found:
        return math.nan
    return math.fsum(count * abs(mean - share) for mean, share, count in found) / len(probabilities)
