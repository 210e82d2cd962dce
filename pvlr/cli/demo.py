"""``pvlr demo``: a web page that tags a dropped picture, with an editable list of labels.

It needs the package gradio (pip install 'pvlr[demo]'), listens on this machine alone and sends nothing anywhere.
"""

import functools
import os
from typing import Any

from pvlr.cli.checks import require_whole
from pvlr.cli.help import Usage
from pvlr.core.arguments import ConfigError
from pvlr.data.images import MAX_PIXELS, decode_rgb
from pvlr.data.overlay import overlay
from pvlr.inference.recognizer import Recognizer

__all__ = ["USAGE", "build", "demo"]

USAGE = Usage(name="", examples=("--run runs/quickstart", "--tower pvlr:photos --labels 'cat, sofa' --port 8000"))
MAPS = 12
"""Most tags whose map is shown."""


def build(recognizer: Recognizer, *, max_pixels: int = MAX_PIXELS) -> Any:
    """Build the page for a recognizer, as gradio's ``Blocks``; `max_pixels` as in :meth:`Recognizer.prepare`."""
    import gradio

    @functools.lru_cache(maxsize=8)
    def for_labels(text: str) -> Recognizer:
        names = [name.strip() for name in text.replace("\n", ",").split(",") if name.strip()]
        return recognizer if names == list(recognizer.labels) else recognizer.with_labels(names)

    def recognise(path: str | None, text: str, own: bool, least: float) -> tuple[list[list[object]], list[Any], str]:
        if path is None:
            return [], [], "Drop a picture first."
        try:
            chosen = for_labels(text)
            every = chosen.tag(path, threshold=chosen.decision.least, max_pixels=max_pixels)
            picture = decode_rgb(path, side=512, max_pixels=max_pixels)
        except ValueError as err:  # All refusals, one sentence each; of the path only the name is the user's.
            return [], [], f"**Refused:** {str(err).replace(f'{os.path.dirname(path)}/', '')}"
        thresholds = {tag.name: chosen.decision.threshold(tag.name) if own else least for tag in every}
        found = [tag for tag in every if tag.probability >= thresholds[tag.name]]
        read = chosen.labels.readable
        rows: list[list[object]] = [
            [read[tag.name], round(tag.probability, 3), round(thresholds[tag.name], 3), "yes" if tag in found else ""]
            for tag in every
        ]
        maps = [
            (overlay(picture, tag.attention), f"{tag.probability:.2f} {read[tag.name]}")
            for tag in found[:MAPS]
            if tag.attention is not None
        ]
        result = ", ".join(read[tag.name] for tag in found) or "no label reaches its threshold"
        return rows, maps, f"**{result}**"

    with gradio.Blocks(title="pvlr", analytics_enabled=False) as page:
        gradio.Markdown("# What is in the picture?\nDrop a picture; change the labels, also to names never trained on.")
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(type="filepath", sources=["upload"], label="Picture", elem_id="picture")
                # Unprocessed: unreadable files give a message. (Gradio writes stubs of subclasses beside them.)
                picture.preprocess = lambda dropped: None if dropped is None else dropped.path
                labels = gradio.Textbox(
                    ", ".join(recognizer.labels), lines=3, label="Labels, with commas between", elem_id="labels"
                )
                own = gradio.Checkbox(
                    value=True, label="Each label's own threshold, as fitted after training", elem_id="own"
                )
                least = gradio.Slider(0.0, 1.0, 0.5, step=0.01, label="One threshold for all", elem_id="least")
                ask = gradio.Button("Tag", variant="primary", elem_id="ask")
            with gradio.Column():
                result = gradio.Markdown(elem_id="said")
                maps = gradio.Gallery(label="Where each tag was found", columns=3, elem_id="maps", format="jpeg")
                table = gradio.Dataframe(
                    headers=["label", "probability", "threshold", "told"], label="Every label", elem_id="table"
                )
        inputs, outputs = [picture, labels, own, least], [table, maps, result]
        ask.click(recognise, inputs, outputs, api_name="tag")
        for event in (picture.upload, labels.submit, own.change, least.release):
            event(recognise, inputs, outputs, api_visibility="private")  # For programs the same once more.
    return page


def demo(
    *,
    run: str | None = None,
    tower: str | None = None,
    weights: str | None = None,
    labels: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_pixels: int = MAX_PIXELS,
    device: str = "cpu",
) -> None:
    """Serve a page that tags pictures, until Ctrl-C.

    Args:
        run: Folder of a finished run or a saved model, or hf-hub:ORGANISATION/REPOSITORY.
        tower: Without a run: towers that tag without training, such as pvlr:photos, a folder or a name of open_clip's.
            With one: the current place of its towers, if it has changed.
        weights: Weights of the tower, if several are published: a tag, or a file.
        labels: The initial labels: names separated by commas, @FILE with one per line, voc, coco or imagenet; null for
            the run's own, or coco.
        host: Address to listen on; 0.0.0.0 lets other machines in.
        port: Port to listen on.
        max_pixels: Largest width times height of a picture.
        device: Device of the model: auto, cpu, cuda or cuda:<number>.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError:
        raise ConfigError("the page needs the package gradio: pip install 'pvlr[demo]'") from None
    require_whole(1, max_pixels=max_pixels)
    page = build(Recognizer.open(run, tower, weights=weights, labels=labels, device=device), max_pixels=max_pixels)
    # Fonts of the visitor's own machine: the page loads nothing from elsewhere.
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(server_name=host, server_port=port, share=False, max_file_size="50mb", ssr_mode=False, theme=theme)
