"""Train tiny-world's two models from random weights:

python -m gla_jax.tiny_world.train --out DIR [--minutes 60] [--clip-steps 3000] [--vfm-steps 1500] [--only clip|vfm]

Every step draws fresh scenes. DIR/training holds Orbax checkpoints; the same command goes on from the last one. At the
end DIR/clip and DIR/vfm are model folders.
"""

import itertools
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax
import typer

from gla_jax.checkpoints.model_folder import ClipSpec, Spec, initial_params, write_checkpoint
from gla_jax.support.batches import read_ahead
from gla_jax.support.progress import counter
from gla_jax.tiny_world import vocabulary
from gla_jax.tiny_world.batches import NONE, Batch, BatchSpec, make_batch
from gla_jax.tiny_world.losses import PHRASES, clip_loss, spread_loss, text_features, vfm_loss, words_loss
from gla_jax.towers.clip import ClipImageSpec, ClipTextSpec
from gla_jax.towers.dino import DinoSpec

Part = Literal["clip", "vfm"]
EMBED_DIM = 96
CLIP_SPEC = ClipSpec(
    ClipImageSpec(image_size=224, patch_size=16, width=128, depth=4, num_heads=4, mlp_width=512, embed_dim=EMBED_DIM),
    ClipTextSpec(
        vocabulary=len(vocabulary.words()),
        context=vocabulary.CONTEXT,
        width=96,
        depth=2,
        num_heads=4,
        mlp_width=384,
        embed_dim=EMBED_DIM,
        end_token=vocabulary.words().index(vocabulary.END),
    ),
)
VFM_SPEC = DinoSpec(image_size=224, patch_size=8, width=96, depth=4, num_heads=3, mlp_width=384)


@dataclass(frozen=True)
class Recipe:
    """Sizes and steps of the training of one part.

    stages: (end, batch) pairs; a stage lasts until that share of the training is done. Small crops come first: at a
    quarter of the patches a step costs a quarter or less, and what a patch is needs little context.
    """

    spec: Spec
    stages: tuple[tuple[float, BatchSpec], ...]
    learning_rate: float
    steps: int
    warmup: int = 60
    text_steps: int = 400
    words_steps: int = 500
    words: BatchSpec = BatchSpec(scenes=8, views=8, crop=64, patch=16, mark_bias=1.0)
    weight_decay: float = 0.02


RECIPES: dict[Part, Recipe] = {
    "clip": Recipe(
        CLIP_SPEC,
        (
            (0.25, BatchSpec(scenes=8, views=6, crop=112, patch=16, mark_bias=0.8)),
            (1.0, BatchSpec(scenes=6, views=4, crop=224, patch=16)),
        ),
        learning_rate=1e-3,
        steps=4000,
    ),
    "vfm": Recipe(
        VFM_SPEC,
        (
            (0.75, BatchSpec(scenes=6, views=4, crop=112, patch=8, mark_bias=0.3)),
            (1.0, BatchSpec(scenes=2, views=2, crop=224, patch=8)),
        ),
        learning_rate=1.5e-3,
        steps=2000,
    ),
}


@dataclass(frozen=True)
class Clock:
    """Length of a training: in steps, and in minutes where they are limited (then a rerun is not bit-identical)."""

    steps: int
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The share of the training that is done, 0 to 1."""
        by_time = seconds / 60 / self.minutes if self.minutes else 0.0
        return min(max(step / self.steps, by_time), 1.0)


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW without its learning rate, which the step applies; vectors and biases do not decay."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(recipe.weight_decay, lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
    )


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warm-up by steps, then half a cosine over the progress, down to a hundredth."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress))
    return float(recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * cosine)


class TextTable:
    """All training sentences as token ids, and the phrases that may caption a window."""

    def __init__(self):
        tokenizer = vocabulary.build_tokenizer()
        sentences = [[form.format(phrase) for phrase in PHRASES] for form in vocabulary.SENTENCES]
        self.ids = np.stack([vocabulary.encode_texts(row, tokenizer) for row in sentences])
        longest = int((self.ids == CLIP_SPEC.text.end_token).argmax(2).max()) + 1
        self.ids = self.ids[:, :, :longest]

    def draw(self, batch: Batch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A sentence for every phrase, [P t], and a caption for every window, [B*V]."""
        captions = [
            _caption(slots, labels, rng)
            for views, labels in zip(batch.slots, batch.labels, strict=True)
            for slots in views
        ]
        return self.draw_texts(rng), np.array(captions, np.int32)

    def draw_texts(self, rng: np.random.Generator) -> np.ndarray:
        """A random sentence for every phrase, [P t]."""
        return self.ids[rng.integers(len(self.ids), size=len(PHRASES)), np.arange(len(PHRASES))]


def _caption(slots: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> int:
    """The phrase of a random object of a window: whole, or for cloths its colour or its mark alone."""
    shown = labels[rng.choice(slots[slots != NONE])]
    pair = shown - vocabulary.FIRST_CLOTH
    form = rng.random()
    if pair < 0 or form < 0.5:
        return int(shown)
    colour, mark = divmod(int(pair), len(vocabulary.MARKS))
    return len(vocabulary.CLASSES) + (colour if form < 0.75 else len(vocabulary.COLOURS) + mark)


def loss_of(spec: Spec) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss (params, batch, *extra inputs) of a part."""
    return partial(clip_loss if isinstance(spec, ClipSpec) else vfm_loss, spec=spec)


def make_step(loss: Callable, recipe: Recipe) -> Callable[..., tuple[Any, Any, dict[str, jax.Array]]]:
    """The compiled training step: (params, optimiser state, batch, extra inputs, learning rate) -> the next ones."""
    transform = optimizer(recipe)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch, extra, rate):
        (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, *extra)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            update, state = transform.update(gradient, state, params)
        params = jax.tree.map(lambda leaf, change: leaf - rate * change, params, update)
        return params, state, metrics | {"loss": total}

    return step


def print_means(name: str, step: int, recent: list[dict[str, jax.Array]], every: int = 25) -> None:
    """Every few steps print the means of the metrics since the last line; until then steps need not wait for them."""
    if step % every == 0:
        means = (f"{key} {np.mean([float(metrics[key]) for metrics in recent]):.3f}" for key in recent[0])
        print(f"{name} step {step}", *means, flush=True)
        recent.clear()


def teach_phrases(params: Any, recipe: Recipe, seed: int) -> Any:
    """The text tower's parameters after learning, from words alone, the intended similarities of its phrases.

    It comes before any picture: phrases whose marks look alike would leave the image tower nothing to tell apart.
    """
    table, transform = TextTable(), optax.adamw(optax.cosine_decay_schedule(recipe.learning_rate, recipe.text_steps))
    state, rng = transform.init(params), np.random.default_rng(seed)

    @jax.jit
    def step(params, state, texts):
        gradient = jax.grad(lambda p: spread_loss(text_features(p, texts, recipe.spec.text)))(params)
        with jax.numpy_dtype_promotion("standard"):
            update, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, update), state

    for _ in range(recipe.text_steps):
        params, state = step(params, state, table.draw_texts(rng))
    return params


def teach_words(params: Any, recipe: Recipe, seed: int) -> Any:
    """The image tower's parameters after learning with linear classifiers what single patches show, close to marks.

    The losses of the value path alone find the colours and then stay there: marks are few, and their gradient is small
    beside the noise of patches that cannot know.
    """
    words = len(vocabulary.GROUNDS) + len(vocabulary.COLOURS) + len(vocabulary.MARKS)
    params = {"image": params, "words": np.zeros((recipe.spec.image.width, words), np.float32)}
    state, recent = optimizer(recipe).init(params), []
    step = make_step(partial(words_loss, spec=recipe.spec.image), recipe)
    seeds = (seed * 10_000_000 + 5_000_000 + index for index in range(recipe.words_steps))
    with counter("words") as advance:
        for index, batch in enumerate(read_ahead(seeds, lambda drawn: make_batch(drawn, recipe.words), 1)):
            rate = learning_rate(recipe, index, index / recipe.words_steps)
            params, state, metrics = step(params, state, batch, (), rate)
            advance(index + 1, recipe.words_steps)
            recent.append(metrics)
            print_means("words", index + 1, recent)
    return params["image"]


def train(part: Part, recipe: Recipe, folder: Path, clock: Clock, save_every: int = 200, seed: int = 0) -> Any:
    """Train one part, from the last checkpoint in folder if there is one; returns its parameters on the host.

    The batch of a step depends on seed and step alone, so an interrupted training limited by steps ends with the same
    parameters as an uninterrupted one.

    Args:
        part: "clip" or "vfm".
        recipe: of that part.
        folder: of the checkpoints.
        clock: length of the training.
        save_every: steps between checkpoints.
        seed: of weights and scenes.
    """
    import orbax.checkpoint as ocp

    params = initial_params(recipe.spec, jax.random.key(seed))
    if part == "clip" and not any(folder.glob("*")):
        text, image = teach_phrases(params["text"], recipe, seed), teach_words(params["image"], recipe, seed)
        params = {"text": text, "image": image}
    state = {"params": params, "optimizer": optimizer(recipe).init(params), "step": 0, "seconds": 0.0}
    run_step, table = make_step(loss_of(recipe.spec), recipe), TextTable()
    with ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        if manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        params, moments, step = state["params"], state["optimizer"], int(state["step"])
        begun = time.monotonic() - float(state["seconds"])

        def now() -> float:
            return clock.progress(step, time.monotonic() - begun)

        def draw(index: int) -> tuple[Batch, tuple]:
            # The thread draws ahead: with a limit in minutes it looks at the clock of now.
            share = max(clock.progress(index, 0.0), now() if clock.minutes else 0.0)
            batch_spec = next(spec for end, spec in recipe.stages if share < end or end == recipe.stages[-1][0])
            batch = make_batch(seed * 10_000_000 + index, batch_spec)
            if part == "vfm":
                return batch, ()
            rng = np.random.default_rng([seed, index])
            return batch, (*table.draw(batch, rng), jax.random.key(seed * 10_000_000 + index))

        def save() -> None:
            reached = {"params": params, "optimizer": moments, "step": step, "seconds": time.monotonic() - begun}
            manager.save(step, args=ocp.args.StandardSave(reached), force=True)
            manager.wait_until_finished()

        recent: list[dict[str, jax.Array]] = []
        with counter(part) as advance, closing(read_ahead(itertools.count(step), draw, 1)) as batches:
            while now() < 1.0:
                batch, extra = next(batches)
                rate = learning_rate(recipe, step, now())
                params, moments, metrics = run_step(params, moments, batch, extra, rate)
                step += 1
                advance(step, clock.steps)
                recent.append(metrics)
                print_means(part, step, recent)
                if step % save_every == 0:
                    save()
        if step != manager.latest_step():
            save()
    return jax.tree.map(np.asarray, params)


def write_model(part: Part, recipe: Recipe, params: Any, folder: Path, command: str) -> None:
    """The trained part as a model folder, in place of an older one."""
    if (folder / "config.json").is_file():
        shutil.rmtree(folder)
    manifest = {"source": "trained on generated scenes", "command": command, "card": "gla_jax/tiny_world/CARD.md"}
    if part == "clip":
        write_checkpoint(
            folder, recipe.spec, params, manifest, vocabulary.tokenizer_files(), templates=vocabulary.TEMPLATES
        )
    else:
        write_checkpoint(folder, recipe.spec, params, manifest)


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the two model folders.")],
    minutes: Annotated[float | None, typer.Option(help="Stop each part after this long, schedule included.")] = None,
    clip_steps: Annotated[int, typer.Option(min=1)] = RECIPES["clip"].steps,
    vfm_steps: Annotated[int, typer.Option(min=1)] = RECIPES["vfm"].steps,
    only: Annotated[str | None, typer.Option(help="Train one part alone: clip or vfm.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    seed: int = 0,
) -> None:
    """Train tiny-world's CLIP and VFM from nothing, or go on from the last checkpoint."""
    if only not in (None, *RECIPES):
        raise typer.BadParameter(
            f"{only!r} is not a part; name clip or vfm, or leave it out for both", param_hint="only"
        )
    for part, recipe in RECIPES.items():
        if only in (None, part):
            steps = {"clip": clip_steps, "vfm": vfm_steps}[part]
            params = train(part, recipe, out / "training" / part, Clock(steps, minutes), save_every, seed)
            command = f"python -m gla_jax.tiny_world.train --only {part} --{part}-steps {steps} --seed {seed}"
            command += f" --minutes {minutes:g}" if minutes else ""
            write_model(part, recipe, params, out / part, command)
            print(f"{out / part} written", flush=True)


if __name__ == "__main__":
    typer.run(main)
