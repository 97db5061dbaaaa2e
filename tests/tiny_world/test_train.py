import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.checkpoints.model_folder import initial_params, read_checkpoint
from gla_jax.tiny_world import train as training
from gla_jax.tiny_world.batches import BatchSpec, make_batch
from gla_jax.tiny_world.losses import (
    N_CLASSES,
    TRAINED,
    caption_loss,
    clip_loss,
    cross_entropy,
    one_hot,
    trained_only,
    vfm_loss,
)
from gla_jax.tiny_world.train import RECIPES, Clock, TextTable, learning_rate, loss_of, make_step, train, write_model


def small(part):
    """The recipe of a part, narrow and shallow, on one scene a step."""
    recipe, thin = RECIPES[part], {"width": 24, "depth": 1, "num_heads": 2, "mlp_width": 24}
    if part == "clip":
        towers = {name: dataclasses.replace(getattr(recipe.spec, name), **thin) for name in ("image", "text")}
        spec, patch = dataclasses.replace(recipe.spec, **towers), 16
    else:
        spec, patch = dataclasses.replace(recipe.spec, **thin), 8
    batch = BatchSpec(1, 2, 64, patch, samples=24)
    return dataclasses.replace(
        recipe, spec=spec, stages=((1.0, batch),), warmup=1, text_steps=2, words_steps=2, words=batch
    )


class Interruption(Exception):
    pass


@pytest.mark.parametrize("part", ["clip", "vfm"])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(part, tmp_path, monkeypatch):
    recipe = small(part)
    whole = train(part, recipe, tmp_path / "whole", Clock(steps=3), save_every=10)

    def interrupt(name, step, *_):
        if name == part and step == 2:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(training, "print_means", interrupt)
        with pytest.raises(Interruption):
            train(part, recipe, tmp_path / "parts", Clock(steps=3), save_every=1)
    resumed = train(part, recipe, tmp_path / "parts", Clock(steps=3), save_every=1)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)

    start = initial_params(recipe.spec, jax.random.key(0))
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: not np.allclose(a, b), start, whole)))
    for _ in range(2):  # the second one takes the place of the first
        write_model(part, recipe, whole, tmp_path / part, "a test")
    read = read_checkpoint(tmp_path / part)
    assert read.spec == recipe.spec
    jax.tree.map(np.testing.assert_array_equal, dict(read.params), dict(whole))


@pytest.mark.parametrize("part", ["clip", "vfm"])
def test_a_few_steps_lower_the_loss_on_their_batch(part):
    recipe = small(part)
    params = initial_params(recipe.spec, jax.random.key(1))
    state = training.optimizer(recipe).init(params)
    batch = make_batch(0, recipe.stages[0][1])
    table, rng = TextTable(), np.random.default_rng(0)
    extra = () if part == "vfm" else (*table.draw(batch, rng), jax.random.key(0))
    step, losses = make_step(loss_of(recipe.spec), recipe), []
    for _ in range(12):
        params, state, metrics = step(params, state, batch, extra, 2e-3)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_held_out_phrases_get_no_gradient_from_images():
    logits = jnp.zeros((3, N_CLASSES))
    targets = jnp.array([0, 6, -1])
    gradient = jax.grad(lambda x: cross_entropy(trained_only(x), one_hot(targets, N_CLASSES)).sum())(logits)
    assert np.all(np.asarray(gradient)[:, ~TRAINED] == 0)
    assert np.all(np.asarray(gradient)[2] == 0)


def test_a_caption_true_of_two_windows_is_no_negative():
    logits = jnp.array([[2.0, 1.0, 0.0], [0.5, 3.0, 0.0]])
    captions = jnp.array([0, 1])
    shown = jnp.array([[True, True, False], [False, True, False]])
    expected = (0.0 + np.log(np.exp(0.5) + np.exp(3.0)) - 3.0) / 2
    assert float(caption_loss(logits, captions, shown)) == pytest.approx(expected, rel=1e-5)


def test_perfect_features_have_no_vfm_loss_but_a_merged_pair_has():
    spec = BatchSpec(1, 2, 64, 8, samples=24)
    recipe, batch = small("vfm"), make_batch(0, spec)
    params = initial_params(recipe.spec, jax.random.key(0))
    _, metrics = vfm_loss(params, batch, recipe.spec)
    assert float(metrics["cos_same_within"]) <= 1.0 + 1e-6
    one_object = batch._replace(slots=np.zeros_like(batch.slots))
    loss, metrics = vfm_loss(params, one_object, recipe.spec)
    assert float(metrics["apart"]) == 0.0
    assert float(loss) == pytest.approx(float(metrics["together"]))


def test_the_clip_loss_reads_no_held_out_phrase():
    recipe = small("clip")
    batch, table = make_batch(0, recipe.stages[0][1]), TextTable()
    params = initial_params(recipe.spec, jax.random.key(0))
    texts, captions = table.draw(batch, np.random.default_rng(0))
    changed = texts.copy()
    changed[:N_CLASSES][~TRAINED] = texts[0]
    loss = jax.jit(clip_loss, static_argnums=5)
    losses = [loss(params, batch, t, captions, jax.random.key(0), recipe.spec)[0] for t in (texts, changed)]
    assert float(losses[0]) == float(losses[1])


def test_progress_and_learning_rate():
    recipe = RECIPES["clip"]
    assert Clock(10).progress(5, 1e9) == 0.5
    assert Clock(10, minutes=1).progress(5, 45) == 0.75
    assert Clock(10, minutes=1).progress(5, 600) == 1.0
    assert learning_rate(recipe, 0, 0.0) == pytest.approx(recipe.learning_rate / recipe.warmup)
    assert learning_rate(recipe, 10**6, 1.0) == pytest.approx(recipe.learning_rate / 100)
