"""The page itself: what stands where, and what each button asks (Gradio)."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from gla_jax.app.answers import MAX_UPLOAD_BYTES, Answers, Request
from gla_jax.config import METHODS
from gla_jax.pictures.drawing import blend, palette
from gla_jax.results.dataset import check_formats
from gla_jax.results.segmentation import Segmentation
from gla_jax.support.errors import UserError
from gla_jax.tiny_world.scenes import render

BATCH = 8  # requests of the API that are taken from the queue together
SECONDS_TO_FINISH = 60  # for what was asked before the page was stopped
SECONDS_TO_FETCH = 2  # for the files of the last answers
WAITING = 64  # requests in the queue; more are refused
SAMPLES = (9, 3, 12)  # scenes
SAMPLE_CLASSES = (
    "sand\nwater\nbrick\ngrass\nwood\ngravel\na yellow cloth with rings; a yellow cloth\na blue cloth with crosses"
)
STYLE = """
.swatch { display: inline-block; width: 1em; height: 1em; margin-right: .5em; border-radius: 3px; vertical-align: -2px }
.shares, .shares tr, .shares td { border: 0 !important }
.shares td { padding: .1em .8em .1em 0 !important }
@media (max-width: 700px) { .gradio-container { padding: 8px !important } }
"""


def shares_table(result: Segmentation) -> str:
    """Colours, names and shares of the classes that occur, largest first, as HTML."""
    from html import escape

    colours = palette(result.classes).tolist()
    rows = sorted(zip(result.shares().items(), colours, strict=True), key=lambda row: -row[0][1])
    cells = "".join(
        f'<tr><td><span class="swatch" style="background: rgb{tuple(colour)}"></span>{escape(name)}</td>'
        f"<td>{100 * share:.1f} %</td></tr>"
        for (name, share), colour in rows
        if share
    )
    return f'<table class="shares">{cells}</table>'


def masked(result: Segmentation, shown: Sequence[str]) -> np.ndarray:
    """The photo under the colours of some classes alone."""
    tinted = blend(result.image, result.labels, palette(result.classes), result.plain)
    on = np.isin(result.labels, [index for index, name in enumerate(result.classes) if name in shown])
    return np.where(on[..., None], tinted, result.image)


def downloads(result: Segmentation, folder: Path) -> list[str]:
    """Files to take away: overlay, index PNG, palette PNG and COCO."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    result.save(folder, "labels", ["coco"])
    return sorted(str(path) for path in folder.iterdir())


def build_page(answers: Answers, folder: Path) -> gr.Blocks:
    """The page.

    Args:
        answers: models and features.
        folder: an empty one, for samples and downloads.

    Raises UserError when a package of the downloads is missing.
    """
    check_formats(["coco"])

    def sentences(function):
        """Show a user's mistake as its sentence, as the command line does."""

        def guarded(*inputs):
            try:
                return function(*inputs)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from None

        return guarded

    @sentences
    def segment(path, classes, model, method, background, threshold):
        result = answers.segment(path, classes, model, method, background, threshold)
        present = [name for name, share in result.shares().items() if share]
        legend = gr.CheckboxGroup(choices=present, value=present, visible=True)
        return result, (result.image, masked(result, present)), legend, shares_table(result), downloads(result, folder)

    def toggle(result, shown):
        return (result.image, masked(result, shown)) if result else None

    @sentences
    def compare(path, classes, model):
        return [gr.Image(picture, visible=True) for picture in answers.compare(path, classes, model)]

    def attention(path, model, event: gr.SelectData):
        try:
            return gr.Image(answers.attention(path, tuple(map(int, event.index)), model), visible=True)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def api_segment(images: list[Any], classes: list[str], models: list[str], methods: list[str]):
        """Label images that waited together."""
        labels, documents = [], []
        for result in answers.segment_together(list(map(Request, images, classes, models, methods))):
            if isinstance(result, UserError):
                labels.append(None)
                documents.append(json.dumps({"error": str(result)}))
                continue
            place = Path(tempfile.mkdtemp(dir=folder)) / "labels.png"
            Image.fromarray(result.labels).save(place)
            labels.append(str(place))
            documents.append(json.dumps({"classes": result.classes, "shares": result.shares()}))
        return [labels, documents]

    samples = []
    for seed in SAMPLES:
        place = folder / f"scene-{seed}.png"
        Image.fromarray(render(seed, 336, 448, "test").image).save(place)
        samples.append([str(place), SAMPLE_CLASSES])

    with gr.Blocks(title="gla-jax", analytics_enabled=False) as page:
        gr.Markdown("## gla-jax\nName what is in the image; no training, no clicks on masks.")
        state = gr.State()
        with gr.Row():
            with gr.Column():
                image = gr.Image(
                    type="filepath",
                    sources=["upload", "clipboard"],
                    label="Image; a click asks about a point",
                )
                classes = gr.Textbox(
                    label="Classes, by lines or commas; synonyms by semicolons",
                    lines=4,
                    placeholder="cat; tabby, grass",
                )
                with gr.Row():
                    model = gr.Dropdown(list(answers.models), value=answers.models[0], label="Model")
                    method = gr.Dropdown(list(METHODS), value="gla", label="Method")
                with gr.Accordion("Background", open=False):
                    background = gr.Textbox(label="Class of pixels below the threshold")
                    threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold")
                with gr.Row():
                    go = gr.Button("Segment", variant="primary")
                    beside = gr.Button("Compare with ProxyCLIP")
            with gr.Column():
                slider = gr.ImageSlider(label="Photo and labels", interactive=False)
                legend = gr.CheckboxGroup(label="Shown", visible=False)
                table = gr.HTML()
                files = gr.File(label="Take away", file_count="multiple")
        with gr.Row(elem_id="comparison"):  # one below the other on phones
            comparison = [gr.Image(show_label=False, visible=False) for _ in range(2)]
        explained = gr.Image(show_label=False, elem_id="explained", visible=False)
        gr.Examples(samples, [image, classes], label="Samples: drawn scenes, which the bundled model knows")

        inputs = [image, classes, model, method, background, threshold]
        outputs = [state, slider, legend, table, files]
        for event in (go.click, classes.submit):
            event(segment, inputs, outputs, api_visibility="private", concurrency_id="model")
        legend.input(toggle, [state, legend], slider, api_visibility="private", queue=False)
        beside.click(compare, [image, classes, model], comparison, api_visibility="private", concurrency_id="model")
        image.select(attention, [image, model], explained, api_visibility="private", concurrency_id="model")

        # The API: an image, classes, model and method in; an index PNG and shares out.
        with gr.Group(visible=False):
            api_inputs = [gr.Image(type="filepath"), gr.Textbox(), gr.Textbox("tiny-world"), gr.Textbox("gla")]
            api_outputs = [gr.File(), gr.Textbox()]
            gr.Button().click(
                api_segment,
                api_inputs,
                api_outputs,
                api_name="segment",
                batch=True,
                max_batch_size=BATCH,
                concurrency_id="model",
            )
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


class Door:
    """Middleware that counts the requests on their way into the queue, and refuses more once it is closed."""

    def __init__(self):
        """Open."""
        self.closed, self.entering = False, 0

    def __call__(self, app: Any) -> Any:
        """An ASGI application behind the door."""

        async def guarded(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["method"] != "POST":
                await app(scope, receive, send)
            elif self.closed:
                await PlainTextResponse("the page is being stopped; ask again later.", 503)(scope, receive, send)
            else:
                self.entering += 1
                try:
                    await app(scope, receive, send)
                finally:
                    self.entering -= 1

        return guarded


def serve(answers: Answers, host: str, port: int, share: bool, folder: Path) -> None:
    """Serve the page until it is stopped; requests that were taken are answered first.

    Args:
        answers: models and features.
        host: address to listen at.
        port: to listen at.
        share: also through a public address of Gradio.
        folder: an empty one, for samples and downloads.

    Raises UserError when the port is taken.
    """
    page, door = build_page(answers, folder), Door()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            max_file_size=MAX_UPLOAD_BYTES,
            allowed_paths=[str(folder)],
            css=STYLE,
            show_error=True,
            prevent_thread_lock=True,
            quiet=True,
            app_kwargs={"middleware": [Middleware(door)]},
        )
    except OSError:  # Gradio's, whose advice is for programmers
        raise UserError(f"port {port} of {host} is taken or not allowed; choose another --port.") from None
    print(f"the page is at {page.local_url}" + (f" and {page.share_url}" if page.share_url else ""), flush=True)
    try:
        page.block_thread()
    finally:
        door.closed = True
        deadline = time.monotonic() + SECONDS_TO_FINISH
        while time.monotonic() < deadline and (door.entering or _unanswered(page)):
            time.sleep(0.1)
        time.sleep(SECONDS_TO_FETCH)
        page.close()


def _unanswered(page: gr.Blocks) -> int:
    """Requests that were taken and whose answer has not left yet: Gradio has no public count of them."""
    return sum(map(len, page._queue.pending_event_ids_session.values()))
