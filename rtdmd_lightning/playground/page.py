"""The page itself, in gradio: what is asked for above, a picture for each column below. It fetches nothing from elsewhere."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it while it is imported

import gradio as gr

from rtdmd_lightning.playground.columns import Columns, parse_steps
from rtdmd_lightning.rewards.base import to_pil
from rtdmd_lightning.utils.errors import UserError, require

LARGEST_SEED = 2**31 - 1
SHARP = ".picture img {image-rendering: pixelated; width: 100%}"  # the toy world's pictures have 32 pixels
FONT = ("system-ui", "sans-serif")


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

    def drawn(prompt: str, seed: float, steps: str, eta: float) -> Iterator[list[Any]]:
        """What the told line and the pictures become, column by column."""
        pictures: list[Any] = [gr.update(value=None, label=title) for title in columns.titles]
        yield ["", *pictures]
        try:
            check_prompt(prompt)
            require(0 <= seed <= LARGEST_SEED, f"the seed must lie between 0 and {LARGEST_SEED}")
            start = time.perf_counter()
            for position, image in enumerate(columns.draw(prompt, int(seed), parse_steps(steps), eta)):
                seconds, start = time.perf_counter() - start, time.perf_counter()
                label = f"{columns.titles[position]} · {seconds:.2f} s"
                pictures[position] = gr.update(value=to_pil(image[None])[0], label=label)
                yield ["", *pictures]
        except UserError as error:
            yield [str(error), *pictures]

    with gr.Blocks(title="rtdmd", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(examples[0] if examples else "", label="Prompt", scale=4)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, min_width=80)
            few = gr.Textbox(steps, label="Steps", info="how many, or which: [1000, 750, 500, 250]", min_width=160)
            noise = gr.Slider(0, 1, eta, step=0.05, label="Eta", info="noise in the students' steps", min_width=160)
            button = gr.Button("Draw", variant="primary", min_width=80)
        told = gr.Markdown(elem_id="told")
        with gr.Row():
            pictures = [
                gr.Image(label=title, format="png", interactive=False, buttons=["download"], elem_classes="picture")
                for title in columns.titles
            ]
        if examples:
            gr.Examples(list(examples), prompt, label="Prompts")
        gr.on([button.click, prompt.submit, seed.submit, few.submit], drawn, [prompt, seed, few, noise], [told, *pictures])
    return page


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serve it until Ctrl-C. Raises UserError where the port is not free."""
    theme = gr.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace"))
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            css=SHARP,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error}") from error
    print(f"the page: http://{host}:{port}", flush=True)
    page.block_thread()
