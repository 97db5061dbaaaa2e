import io
import re

import pytest
from rich.console import Console

from gla_jax.models.registry import EMBEDDED, MODELS, NamedModel, models_table
from gla_jax.towers.kinds import FAMILIES


def test_the_names_users_are_told_about_are_there():
    assert {"clip-vit-base-patch16", "clip-vit-large-patch14-336", "dino-vitb8", "dinov2-large-registers"} <= set(
        MODELS
    )
    assert EMBEDDED not in MODELS


@pytest.mark.parametrize(("name", "model"), MODELS.items())
def test_a_row_makes_sense(name, model):
    assert re.fullmatch(r"[a-z0-9-]+", name), "a plus or a slash would be read as two models or as a folder"
    assert model.family in FAMILIES
    assert re.fullmatch(r"[\w-]+/[\w.-]+", model.hub_id)
    assert model.image_size % model.patch == 0
    assert model.licence.rstrip("*") in ("MIT", "Apache-2.0", "CC-BY-NC-4.0", "DINOv3")
    assert model.gated == ("gated" in model.note)


def test_hub_ids_are_not_repeated():
    assert len({model.hub_id for model in MODELS.values()}) == len(MODELS)


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        MODELS["mine"] = NamedModel("clip", "me/mine", "MIT", 16, 224, 1)


def test_the_printed_table_holds_every_name_and_origin_in_80_columns():
    console = Console(width=80, file=io.StringIO())
    console.print(models_table())
    text = console.file.getvalue()
    for name, model in MODELS.items():
        assert name in text
        assert model.hub_id in text
    assert EMBEDDED in text
    assert "…" not in text
