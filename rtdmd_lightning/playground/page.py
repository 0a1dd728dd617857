"""The page itself, in gradio: what is asked for above, a picture for each column below. It fetches nothing from elsewhere."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from PIL.Image import Image

from rtdmd_lightning.playground.columns import Columns, parse_steps
from rtdmd_lightning.rewards.base import to_pil
from rtdmd_lightning.utils.errors import UserError

LARGEST_SEED = 2**31 - 1
FONT = ("system-ui", "sans-serif")
CSS = """
.picture .image-frame, .picture .image-frame img {width: 100% !important; height: auto !important; object-fit: contain}
.few-pixels img {image-rendering: pixelated}
"""
FEW_PIXELS = 128  # a side; such pictures are enlarged without blurring


def build_page(
    columns: Columns,
    examples: Sequence[str],
    steps: str,
    eta: float,
    check_prompt: Callable[[str], None],
) -> gr.Blocks:
    """The page, not served yet.

    Args:
        columns: loaded.
        examples: prompts to choose from; the first one stands there.
        steps: how the field of that name begins.
        eta: the same.
        check_prompt: raises UserError for a prompt that the base knows nothing of.
    """
    titles = [f"**{title}**" for title in columns.titles]

    def drawn(prompt: str, seed: float, steps: str, eta: float) -> Iterator[list[Any]]:
        """What is told, the titles and the pictures, again after each column."""
        shown: list[str] = list(titles)
        pictures: list[Image | None] = [None for _ in titles]
        yield ["", *shown, *pictures]
        try:
            check_prompt(prompt)
            start = time.perf_counter()
            for position, image in enumerate(columns.draw(prompt, int(seed), parse_steps(steps), eta)):
                seconds, start = time.perf_counter() - start, time.perf_counter()
                shown[position] = f"{titles[position]} · {seconds:.2f} s"
                pictures[position] = to_pil(image[None])[0]
                yield ["", *shown, *pictures]
        except UserError as error:
            yield [str(error), *shown, *pictures]

    kind = ["picture", "few-pixels"] if columns.side <= FEW_PIXELS else ["picture"]
    with gr.Blocks(title="rtdmd", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(examples[0], label="Prompt", scale=5)
            button = gr.Button("Draw", variant="primary")
        with gr.Row(equal_height=True):
            seed = gr.Number(0, label="Seed", info="of the noise", precision=0, minimum=0, maximum=LARGEST_SEED)
            few = gr.Textbox(steps, label="Steps", info="how many, or which, as in [1000, 750, 500, 250]")
            noise = gr.Slider(0, 1, eta, step=0.05, label="Eta", info="how noisy the students' steps are")
        told = gr.Markdown(elem_id="told")
        headings, pictures = [], []
        with gr.Row():
            for title in titles:
                with gr.Column(min_width=160):
                    headings.append(gr.Markdown(title))
                    pictures.append(
                        gr.Image(
                            format="png", interactive=False, show_label=False, buttons=["download"], elem_classes=kind
                        )
                    )
        gr.Examples(list(examples), prompt, label="Prompts")
        asked = [button.click, prompt.submit, seed.submit, few.submit]
        gr.on(asked, drawn, [prompt, seed, few, noise], [told, *headings, *pictures])
    return page


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serve it until Ctrl-C. Raises UserError where the port is not free."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is told to gradio's makers, errors neither
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace")),
            css=CSS,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error}") from error
    print(f"the page: http://{host}:{port}", flush=True)
    page.block_thread()
