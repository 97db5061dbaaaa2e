"""Losses of tiny-world's two models: pure functions of parameters, one batch and a key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gla_jax.checkpoints.model_folder import ClipSpec, Params
from gla_jax.images.windows import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalise
from gla_jax.support.arrays import Array, l2_normalize
from gla_jax.tiny_world import vocabulary
from gla_jax.tiny_world.batches import NONE, SLOTS, Batch
from gla_jax.towers.clip import ClipImage, ClipImageSpec, ClipText, ClipTextSpec
from gla_jax.towers.dino import Dino, DinoSpec

# Below the evaluation's 40, which changes no argmax: a steep softmax drowns the marks in noise while they are learnt.
LOGIT_SCALE = 20.0
SURE = 0.6  # a window "sees" a mark when at least this share of it lies inside
UNSEEN = 0.1
PHRASES = (*vocabulary.CLASSES, *vocabulary.COLOUR_PHRASES, *vocabulary.MARK_PHRASES)
N_CLASSES, N_COLOURS, N_MARKS = len(vocabulary.CLASSES), len(vocabulary.COLOURS), len(vocabulary.MARKS)
# The phrases of held-out pairs are never read in training, neither as targets nor as negatives.
TRAINED = np.isin(np.arange(N_CLASSES), vocabulary.TRAIN_CLASSES)


_pair = np.arange(N_CLASSES) - vocabulary.FIRST_CLOTH
_colour = np.where(_pair >= 0, _pair // N_MARKS, N_COLOURS + 1)
# Trained classes that are a cloth of each colour, [colours + 1 L]; the last row is of no colour.
TRAINED_OF_COLOUR = (_colour == np.arange(N_COLOURS + 1)[:, None]) & TRAINED
READ = np.concatenate([TRAINED, np.ones(N_COLOURS + N_MARKS, bool)])  # of PHRASES


def shared_words() -> np.ndarray:
    """The cosine two phrases should have, [P P]: a colour, a mark and a ground are a direction each, a cloth is the sum
    of its two.

    Left to itself the text tower maps all marks of a colour to one point, and neither tower then has a gradient towards
    telling marks apart; the geometry of the phrases ends that, and lets pairs that were never seen be composed.
    """
    grounds = vocabulary.FIRST_CLOTH
    words = np.zeros((len(PHRASES), grounds + N_COLOURS + N_MARKS), np.float32)
    words[np.arange(grounds), np.arange(grounds)] = 1
    for pair in range(N_COLOURS * N_MARKS):
        colour, mark = divmod(pair, N_MARKS)
        words[grounds + pair, [grounds + colour, grounds + N_COLOURS + mark]] = np.sqrt(0.5)
    words[N_CLASSES:, grounds:] = np.eye(N_COLOURS + N_MARKS)
    return words @ words.T


SHARED_WORDS = shared_words()


def window_pixels(pixels: Array, mean: np.ndarray, std: np.ndarray) -> Array:
    """uint8 [B V c c 3] to normalised float32 [B*V 3 c c]."""
    flat = pixels.reshape(-1, *pixels.shape[2:]).transpose(0, 3, 1, 2).astype(jnp.float32) / 255.0
    return normalise(flat, mean, std)


def cross_entropy(logits: Array, target: Array) -> Array:
    """-log softmax, averaged over the classes where target holds; 0 where it holds nowhere; [... L] -> [...]."""
    target = target.astype(jnp.float32)
    share = target / jnp.maximum(target.sum(-1, keepdims=True), 1.0)
    return optax.losses.softmax_cross_entropy(logits, share)


def one_hot(labels: Array, classes: int) -> Array:
    """[...] to [... classes] bool; no class where a label is negative."""
    return jax.nn.one_hot(labels, classes, dtype=bool)


def mean_where(values: Array, mask: Array) -> Array:
    """The mean of the values where mask holds; 0 where it holds nowhere."""
    mask = mask.astype(jnp.float32)
    return (values.astype(jnp.float32) * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def clip_loss(
    params: Params, batch: Batch, texts: Array, captions: Array, key: Array, spec: ClipSpec
) -> tuple[Array, dict[str, Array]]:
    """Loss and metrics of the CLIP part.

    Patches, and random averages over patches of an object in one window and in several, are classified through the
    value path; the CLS feature is contrasted with the captions of the batch.

    Args:
        params: of both towers.
        batch: windows of scenes.
        texts: token ids of one sentence for each of PHRASES, [P t].
        captions: for each window the phrase that captions it, [B*V].
        key: of the random averages.
        spec: of the towers.
    """
    scenes, views, tokens = batch.slots.shape
    phrases = text_features(params["text"], texts, spec.text)
    tower, image = ClipImage(spec.image), {"params": params["image"]}
    encoded = tower.apply(image, window_pixels(batch.pixels, CLIP_MEAN, CLIP_STD), method="encode")
    values = encoded.qkv.values[:, 1:]

    def logits_of(gathered: Array) -> Array:
        joint = tower.apply(image, gathered.reshape(1, -1, gathered.shape[-1]), method="project")
        # Patches that cannot know pull the phrases of a colour together; the text tower must not follow them.
        fixed = jax.lax.stop_gradient(phrases)
        return LOGIT_SCALE * jnp.einsum("...e,pe->...p", l2_normalize(joint).reshape(*gathered.shape[:-1], -1), fixed)

    # Averages of values: what attention by features does, over random parts of an object in one or several windows.
    share_key, patch_key, window_key = jax.random.split(key, 3)
    member = jax.nn.one_hot(batch.slots, SLOTS, axis=2)  # [B V SLOTS n]; NONE is no slot
    share = jax.random.uniform(share_key, (scenes, views, SLOTS, 1), minval=0.05, maxval=1.5)
    member = member * (jax.random.uniform(patch_key, member.shape) < share).astype(jnp.float32)
    values = values.reshape(scenes, views, tokens, -1)
    sums = jnp.einsum("bvsn,bvnc->bvsc", member, values)
    counts = member.sum(-1)
    lit = jax.random.bernoulli(window_key, 0.7, (scenes, views, SLOTS)).astype(jnp.float32)
    joined_counts = (counts * lit).sum(1)
    joined = (sums * lit[..., None]).sum(1) / jnp.maximum(joined_counts, 1.0)[..., None]
    alone = sums / jnp.maximum(counts, 1.0)[..., None]

    token_labels, token_logits = patch_labels(batch), logits_of(values)
    alone_labels, alone_logits = jnp.where(counts >= 2, batch.labels[:, None], -1), logits_of(alone)
    joined_labels, joined_logits = jnp.where(joined_counts >= 3, batch.labels, -1), logits_of(joined)
    patch_seen = jnp.take_along_axis(jnp.pad(batch.mark_seen, ((0, 0), (0, 0), (0, 1))), batch.slots, 2)
    joined_seen = (batch.mark_seen * lit * (counts > 0).astype(jnp.float32)).max(1)
    mark_labels = jnp.where(batch.marked, token_labels, -1)
    losses = {
        "token": class_loss(token_logits, token_labels, patch_seen),
        # Few patches show a mark; without a loss of their own the marks are learnt last.
        "mark": named_loss(token_logits, mark_labels, jnp.ones(mark_labels.shape)),
        "window": named_loss(alone_logits, alone_labels, batch.mark_seen),
        "scene": named_loss(joined_logits, joined_labels, joined_seen),
    }
    cls = tower.apply(image, encoded, method="image_feature")
    cls_logits = LOGIT_SCALE / 2 * l2_normalize(cls) @ phrases.T
    losses["caption"] = caption_loss(cls_logits, captions, phrases_shown(counts, batch.labels))
    losses["spread"] = spread_loss(phrases)
    total = losses["token"] + losses["mark"] + losses["window"] + losses["scene"]
    total = total + 0.2 * losses["caption"] + 10.0 * losses["spread"]
    right = accuracies(token_logits, token_labels, patch_seen, batch.marked, joined_logits, joined_labels)
    return total, losses | right


def words_loss(params: Params, batch: Batch, spec: ClipImageSpec) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of linear classifiers on the values of single patches: ground, colour of a cloth, mark.

    params: {"image": the tower's, "words": [C grounds + colours + marks]}.
    """
    pixels = window_pixels(batch.pixels, CLIP_MEAN, CLIP_STD)
    values = ClipImage(spec).apply({"params": params["image"]}, pixels, method="encode").qkv.values[:, 1:]
    values = values * jax.lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + 1e-6)
    logits = jnp.einsum("bnc,cp->bnp", values, params["words"]).reshape(*batch.slots.shape, -1)
    labels = patch_labels(batch)
    colour, mark = colour_and_mark(labels)
    mark = jnp.where(batch.marked, mark, -1)
    surface = jnp.where(labels < vocabulary.FIRST_CLOTH, labels, vocabulary.FIRST_CLOTH + colour)
    surfaces, marks = jnp.split(logits, [vocabulary.FIRST_CLOTH + N_COLOURS], axis=-1)
    by_surface = mean_where(cross_entropy(surfaces, one_hot(surface, surfaces.shape[-1])), surface >= 0)
    by_mark = mean_where(cross_entropy(marks, one_hot(mark, N_MARKS)), mark >= 0)
    metrics = {
        "surface_right": mean_where(surfaces.argmax(-1) == surface, surface >= 0),
        "mark_right": mean_where(marks.argmax(-1) == mark, mark >= 0),
    }
    return by_surface + by_mark, metrics


def patch_labels(batch: Batch) -> Array:
    """The class of every patch, int32 [B V n]; -1 where it belongs to no object."""
    by_slot = jnp.pad(batch.labels, ((0, 0), (0, 1)), constant_values=-1)
    return jnp.take_along_axis(by_slot[:, None], batch.slots, 2)


def text_features(params: Params, texts: Array, spec: ClipTextSpec) -> Array:
    """Unit features [P E] of one sentence for each of PHRASES, [P t]; zero rows for the phrases held out."""
    read = np.flatnonzero(READ)
    features = l2_normalize(ClipText(spec).apply({"params": params}, jnp.asarray(texts)[read]))
    return jnp.zeros((len(PHRASES), features.shape[1])).at[read].set(features)


def spread_loss(phrases: Array) -> Array:
    """Squared distance of the cosines between phrases [P E] from those of SHARED_WORDS, held-out phrases left out."""
    wanted = jnp.where(READ[:, None] & READ[None], SHARED_WORDS, 0.0)
    return jnp.square(phrases @ phrases.T - wanted).sum() / float(READ.sum()) ** 2


def named_loss(logits: Array, labels: Array, seen: Array) -> Array:
    """class_loss, and a part of word_loss on top."""
    return class_loss(logits, labels, seen) + 0.3 * word_loss(logits, labels, seen)


def class_loss(logits: Array, labels: Array, seen: Array) -> Array:
    """Cross-entropy among the class phrases that training may read; held-out targets do not count.

    Where the mark is not seen the target is every mark of the colour alike. The drawn mark would be noise: on average
    the same target, but loud enough to drown the few patches that show a mark; a window must be unsure, not lucky.
    """
    logits = trained_only(logits)
    colour, _ = colour_and_mark(labels)
    unsure = jnp.asarray(TRAINED_OF_COLOUR)[colour] & (seen <= UNSEEN)[..., None]
    target = jnp.where(unsure.any(-1, keepdims=True), unsure, one_hot(labels, N_CLASSES))
    counted = (labels >= 0) & jnp.asarray(TRAINED)[jnp.maximum(labels, 0)]
    return mean_where(cross_entropy(logits, target), counted)


def colour_and_mark(labels: Array) -> tuple[Array, Array]:
    """Indices of colour and mark of class labels, -1 for grounds and for no label."""
    pair = labels - vocabulary.FIRST_CLOTH
    return jnp.where(pair >= 0, pair // N_MARKS, -1), jnp.where(pair >= 0, pair % N_MARKS, -1)


def word_loss(logits: Array, labels: Array, seen: Array) -> Array:
    """Cross-entropy among the phrases that name a colour alone, plus among those that name a mark alone."""
    colour, mark = colour_and_mark(labels)
    by_colour = cross_entropy(logits[..., N_CLASSES : N_CLASSES + N_COLOURS], one_hot(colour, N_COLOURS))
    marks = one_hot(mark, N_MARKS) | (seen <= UNSEEN)[..., None]
    by_mark = cross_entropy(logits[..., N_CLASSES + N_COLOURS :], marks)
    return mean_where(by_colour + by_mark, colour >= 0)


def phrases_shown(counts: Array, labels: Array) -> Array:
    """The phrases that are true of each window, bool [B*V P]: of its objects and of their colours and marks alone."""
    present = (counts > 0) & (labels[:, None] >= 0)
    colour, mark = colour_and_mark(labels)
    hot = [jax.nn.one_hot(index, size) for index, size in ((labels, N_CLASSES), (colour, N_COLOURS), (mark, N_MARKS))]
    true = jnp.einsum("bvs,bsp->bvp", present.astype(jnp.float32), jnp.concatenate(hot, -1))
    return true.reshape(-1, true.shape[-1]) > 0


def caption_loss(logits: Array, captions: Array, shown: Array) -> Array:
    """Each window against the captions of the batch; a caption of another window that is true of it is no negative."""
    among = logits[:, captions]
    own = captions[None] == captions[:, None]
    also_true = shown[:, captions] & ~own
    # Copies of the caption share the target: less the log of their number they count as one.
    return (cross_entropy(jnp.where(also_true, -1e9, among), own) - jnp.log(own.sum(1))).mean()


def trained_only(logits: Array) -> Array:
    """Logits of the classes, those of held-out pairs out of reach."""
    logits = logits[..., :N_CLASSES]
    return jnp.where(jnp.broadcast_to(TRAINED, logits.shape), logits, -1e9)


def accuracies(
    token_logits: Array, labels: Array, seen: Array, marked: Array, joined_logits: Array, joined_labels: Array
) -> dict[str, Array]:
    """Shares of right answers among trained classes: patches of cloths whose mark the window shows or does not, of
    grounds, joined averages; and how sure patches are that cannot know (a sixth at best: the marks of their colour).
    """

    def right(logits: Array, truth: Array) -> Array:
        return trained_only(logits).argmax(-1) == truth

    tokens = right(token_logits, labels)
    cloth = labels >= vocabulary.FIRST_CLOTH
    guess = jax.nn.softmax(trained_only(token_logits)).max(-1)
    return {
        "on_mark": mean_where(tokens, cloth & marked),
        "seen": mean_where(tokens, cloth & (seen >= SURE)),
        "unseen": mean_where(tokens, cloth & (seen <= UNSEEN)),
        "sureness_unseen": mean_where(guess, cloth & (seen <= UNSEEN)),
        "ground": mean_where(tokens, (labels >= 0) & ~cloth),
        "joined": mean_where(right(joined_logits, joined_labels), joined_labels >= vocabulary.FIRST_CLOTH),
    }


def vfm_loss(params: Params, batch: Batch, spec: DinoSpec) -> tuple[Array, dict[str, Array]]:
    """Loss and metrics of the VFM part: cosine 1 for patches of one object in any window of a scene, below 0 otherwise.

    GLA keeps keys whose similarity is above beta times the row's mean, and counts those above rho = 0.55.
    """
    scenes, views, tokens = batch.slots.shape
    pixels = window_pixels(batch.pixels, IMAGENET_MEAN, IMAGENET_STD)
    features = l2_normalize(Dino(spec).apply({"params": params}, pixels).patch_tokens)
    features = features.reshape(scenes, views * tokens, -1)
    picked = jnp.take_along_axis(features, batch.samples[..., None], 1)
    slots = jnp.take_along_axis(batch.slots.reshape(scenes, -1), batch.samples, 1)
    cosine = jnp.einsum("bmd,bnd->bmn", picked, picked)
    real = (slots != NONE)[:, :, None] & (slots != NONE)[:, None]
    same = (slots[:, :, None] == slots[:, None]) & real
    other = ~(slots[:, :, None] == slots[:, None]) & real
    together = mean_where(jnp.square(1.0 - cosine), same)
    apart = mean_where(jnp.square(jax.nn.relu(cosine + 0.05)), other)
    across = (batch.samples // tokens)[:, :, None] != (batch.samples // tokens)[:, None]
    return together + apart, {
        "together": together,
        "apart": apart,
        "cos_same_within": mean_where(cosine, same & ~across),
        "cos_same_across": mean_where(cosine, same & across),
        "cos_other_within": mean_where(cosine, other & ~across),
        "cos_other_across": mean_where(cosine, other & across),
        "same_below_rho": mean_where((cosine < 0.55).astype(jnp.float32), same),
        "other_above_0.1": mean_where((cosine > 0.1).astype(jnp.float32), other),
    }
