"""The prompt path: context through the text tower of CLIP ViT-B/16, forward and backward, per number of labels."""

from collections.abc import Callable, Iterator

import torch
from measure import Measured, measure, table

CONTEXT = 16
PLAIN_AT_MOST = 80  # More labels than this the plain way needs more memory than most machines have.
ADJECTIVES = "old new red green small large wooden metal striped shiny plain broken heavy light round square wet"
NOUNS = """
dog cat car bus train boat chair table sofa bottle cup fork knife spoon bowl apple orange pizza cake bed toilet laptop
mouse keyboard phone oven sink book clock vase scissors bird horse sheep cow elephant bear zebra giraffe umbrella tie
handbag suitcase frisbee skis snowboard kite skateboard surfboard traffic_light stop_sign person bench
"""


def names(count: int) -> list[str]:
    """Names of one to three words: everyday things, then the same with adjectives."""
    nouns = [noun.replace("_", " ") for noun in NOUNS.split()]
    described = [f"{adjective} {noun}" for adjective in ADJECTIVES.split() for noun in nouns]
    return [*nouns, *described, *(f"very {name}" for name in described)][:count]


def prompt_path(labels: int, plain: bool) -> Callable[[], object]:
    """Forward and backward from every label's vector to the shared context."""
    import open_clip

    from pvlr.core.towers.text.open_clip import OpenClipTextTower

    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    # The image half is not needed, and kept small.
    config["vision_cfg"] = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64}
    tower = OpenClipTextTower(open_clip.CLIP(**config), open_clip.get_tokenizer("ViT-B-16-quickgelu"))
    sentences = [f"{name}." for name in names(labels)]
    prompts = tower.tokenize_prompts(sentences, None, CONTEXT)
    context = torch.nn.Parameter(0.02 * torch.randn(CONTEXT, tower.width))
    weight = torch.randn(labels, tower.dim)

    def whole_text() -> torch.Tensor:
        """Encode as it is usually written: 77 positions for every label, the context put in between."""
        embedded = tower.embed(prompts.ids)
        shared = context.expand(labels, -1, -1)
        x = torch.cat([embedded[:, :1], shared, embedded[:, 1 + CONTEXT :]], dim=1) + tower.positional_embedding
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
        return x[torch.arange(labels), prompts.end] @ tower.text_projection

    def work() -> None:
        context.grad = None
        vectors = whole_text() if plain else tower.encode_context(context, prompts)
        (vectors * weight).sum().backward()

    return work


def report() -> Iterator[str]:
    """The table, ratio first."""
    rows = []
    plain: dict[int, Measured] = {}
    for labels in (20, 80, 1000):
        part = min(labels, PLAIN_AT_MOST)
        if part not in plain:
            plain[part] = measure(prompt_path, repeat=3, labels=part, plain=True)
        times = labels / part
        whole, said = Measured(*(times * x for x in plain[part])), "" if part == labels else " (from 80)"
        ours = measure(prompt_path, labels=labels, plain=False)
        rows.append(
            (
                f"{labels:,}",
                f"{whole.seconds / ours.seconds:.1f}×",
                f"1/{whole.megabytes / ours.megabytes:.0f}",
                f"{whole.seconds:.2f} s{said}",
                f"{ours.seconds:.3f} s",
                f"{whole.megabytes:,.0f} MiB{said}",
                f"{ours.megabytes:,.0f} MiB",
            )
        )
    header = ("labels", "faster", "memory", "plain, 77 tokens", "prefix shared", "plain", "prefix shared")
    yield table("Prompt path: ViT-B/16 text tower, 16 context tokens, forward + backward, float32", header, rows)
