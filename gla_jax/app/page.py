"""The page itself: what stands where, and what each button asks (Gradio)."""

import json
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from gla_jax.app.answers import MAX_UPLOAD_BYTES, Answers, Request
from gla_jax.config import METHODS
from gla_jax.pictures.drawing import blend, legend_entries, palette
from gla_jax.results.dataset import check_formats
from gla_jax.results.segmentation import Segmentation
from gla_jax.support.errors import UserError
from gla_jax.tiny_world.scenes import render

BATCH = 8  # requests of the API that are taken from the queue together
SECONDS_TO_FINISH = 60  # for what was asked before the page was stopped
SECONDS_TO_FETCH = 2  # without anything to answer: for files, and for streams that are opened after their question
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

    cells = "".join(
        f'<tr><td><span class="swatch" style="background: rgb{entry.colour}"></span>{escape(entry.name)}</td>'
        f"<td>{entry.note}</td></tr>"
        for entry in legend_entries(result.labels, result.classes, result.plain)
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


def upload(**options: Any) -> gr.Image:
    """An image whose file goes to our reader as it was uploaded: Gradio's makes 16 bits white, and has no sentences."""
    image = gr.Image(type="filepath", image_mode=None, **options)
    image.preprocess = lambda payload: payload and payload.path
    return image


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
    def compare(path, classes, model, background, threshold):
        pictures = answers.compare(path, classes, model, background, threshold)
        return [gr.Image(picture, visible=True) for picture in pictures]

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

    samples, shown = [], answers.examples
    for seed in SAMPLES:
        place = folder / f"scene-{seed}.png"
        Image.fromarray(render(seed, 336, 448, "test").image).save(place)
        samples.append([str(place), SAMPLE_CLASSES])

    with gr.Blocks(title="gla-jax", analytics_enabled=False) as page:
        gr.Markdown("## gla-jax\nName what is in the image: each name gets its region, without training.")
        state = gr.State()
        with gr.Row():
            with gr.Column():
                image = upload(sources=["upload", "clipboard"], label="Image; click a point to see what it attends to")
                classes = gr.Textbox(
                    label="Classes, by lines or commas; synonyms by semicolons",
                    lines=4,
                    placeholder=f"{', '.join(shown.names)} (of the labelled images)" if shown else "cat; tabby, grass",
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
                files = gr.File(label="Downloads", file_count="multiple")
        with gr.Row(elem_id="comparison"):  # one below the other on phones
            comparison = [gr.Image(show_label=False, visible=False) for _ in range(2)]
        explained = gr.Image(show_label=False, elem_id="explained", visible=False)
        gr.Examples(samples, [image, classes], label="Samples: drawn scenes, which the bundled model knows")

        inputs = [image, classes, model, method, background, threshold]
        outputs = [state, slider, legend, table, files]
        for event in (go.click, classes.submit):
            event(segment, inputs, outputs, api_visibility="private", concurrency_id="model")
        legend.input(toggle, [state, legend], slider, api_visibility="private", queue=False)
        asked = [image, classes, model, background, threshold]
        beside.click(compare, asked, comparison, api_visibility="private", concurrency_id="model")
        image.select(attention, [image, model], explained, api_visibility="private", concurrency_id="model")

        # The API: an image, classes, model and method in; an index PNG and shares out.
        with gr.Group(visible=False):
            api_inputs = [upload(), gr.Textbox(), gr.Textbox("tiny-world"), gr.Textbox("gla")]
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
    """Middleware that counts what was taken and is not answered yet, and refuses more once it is closed.

    An answer is taken at the addresses of the API: requests that are on their way into the queue, streams that wait for
    answers, and events of /call/NAME until the stream /call/NAME/EVENT has ended.
    """

    def __init__(self):
        """Open."""
        self.closed, self._running, self._events = False, 0, set()

    @property
    def unanswered(self) -> int:
        """The number of requests, streams and events without a stream."""
        return self._running + len(self._events)

    def __call__(self, app: Any) -> Any:
        """An ASGI application behind the door."""

        async def guarded(scope: dict[str, Any], receive: Any, send: Any) -> None:
            asks = scope["type"] == "http" and scope["method"] == "POST"
            path = scope.get("path", "")  # a lifespan has none
            if asks and self.closed:
                await PlainTextResponse("the page is being stopped; ask again later.", 503)(scope, receive, send)
            elif not asks and "/call/" not in path and not path.endswith("/queue/data"):
                await app(scope, receive, send)
            else:
                self._running += 1
                try:
                    await app(scope, receive, self._remembering(send) if asks and "/call/" in path else send)
                finally:
                    self._running -= 1
                    if not asks:
                        self._events.discard(path.rpartition("/")[2])

        return guarded

    def _remembering(self, send: Any) -> Any:
        """`send` that keeps the event of an answer {"event_id": ...}, whose stream comes later."""

        async def sending(message: dict[str, Any]) -> None:
            with suppress(ValueError, KeyError, TypeError):  # the start of an answer, or a refusal
                self._events.add(json.loads(message["body"])["event_id"])
            await send(message)

        return sending


def serve(answers: Answers, host: str, port: int, share: bool, folder: Path) -> None:
    """Serve the page until it is stopped; requests that were taken are answered first.

    Args:
        answers: models and features.
        host: address to listen at.
        port: to listen at.
        share: also through a public address of Gradio.
        folder: an empty one, for samples and downloads.

    Raises UserError when the port is taken, or the host is none of this machine.
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
        raise UserError(
            f"port {port} of {host} is taken or not allowed, or {host} is no address of this machine; choose another "
            "--port or --host."
        ) from None
    print(f"the page is at {page.local_url}" + (f" and {page.share_url}" if page.share_url else ""), flush=True)
    try:
        threading.Event().wait()  # not Gradio's block_thread, which closes at once for Ctrl-C
    finally:
        door.closed = True
        deadline, idle, pause = time.monotonic() + SECONDS_TO_FINISH, 0.0, 0.1
        while time.monotonic() < deadline and idle < SECONDS_TO_FETCH:
            time.sleep(pause)
            idle = 0.0 if door.unanswered else idle + pause
        page.close(verbose=False)
