"""From words to settings: every name that does not exist gets its nearest choice, old names go on with a sentence."""

from dataclasses import replace

import numpy as np
import pytest

from gla_jax.config import METHODS, PRESETS, MethodConfig, SegmenterConfig
from gla_jax.settings.options import settings_from_options, with_fields
from gla_jax.support.errors import UserError


def test_without_options_it_is_the_released_run():
    assert settings_from_options() == SegmenterConfig()


def test_presets_are_named_by_their_sizes():
    assert settings_from_options(preset="448-336-112") == PRESETS["448-336-112"]
    assert settings_from_options(preset="rho-0.6").method.anchor_threshold == 0.6
    both = settings_from_options(preset="448-336-112+rho-0.6")
    assert (both.windows.crop, both.method.anchor_threshold) == (336, 0.6)
    assert settings_from_options(preset="rho-0.6", method="gla-clearclip").method == MethodConfig(
        baseline="clearclip", anchor_threshold=0.6
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sclip", "336-224-112"),
        ("proxyclip", "448-336-112"),
        ("clearclip", "448-448-224-scale-50"),
        ("clip-dinoiser", "448-448-224"),
    ],
)
def test_old_names_of_presets_go_on_with_a_sentence(old, new):
    with pytest.warns(UserWarning, match=f"the preset {old} is called {new} now"):
        assert settings_from_options(preset=old) == PRESETS[new]


def test_gla_clip_is_the_papers_method_and_says_so():
    """It was GLA on CLIP's own keys, 61.1 mIoU where the paper's method has 86.0."""
    with pytest.warns(UserWarning, match="gla-clip is the paper's method.*gla-on-clip-keys"):
        assert settings_from_options(method="gla-clip").method == METHODS["gla"]
    assert settings_from_options(method="gla-on-clip-keys").method.baseline == "proxyclip-clip"


def test_fields_have_the_letters_of_the_paper_too():
    changed = with_fields(SegmenterConfig(), {"rho": 0.7, "alpha_beta": 0.1, "alpha_gamma": 10, "crop": 112})
    assert changed.method == replace(MethodConfig(), anchor_threshold=0.7, dynamic_shift=0.1, dynamic_scale=10)
    assert changed.windows.crop == 112
    kept = with_fields(changed, {"method": "proxyclip"})
    assert kept.method == METHODS["proxyclip"]
    assert kept.windows == changed.windows


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "glaa"}, "'glaa' is not a method; did you mean gla"),
        ({"preset": "336-224"}, "'336-224' is not a preset; did you mean 336-224-112"),
        ({"preset": "336-224-112+rho-0.7"}, "'rho-0.7' is not a setting of the numbers"),
        ({"preset": "centred+centred"}, "'centred' is not a preset; there are 336-224-112"),
        ({"preset": "centred", "method": "gla-clearclip"}, "the method gla-clearclip compares none; leave it out"),
        ({"method": "nothing"}, "'nothing' is not a method; there are gla, [^.]* and 8 more"),
        ({"dtype": "float16"}, "dtype 'float16' is not one of"),
        ({"short_side": "-3"}, "short side '-3' is not a number of pixels"),
        ({"short_side": "٣"}, "is not a number of pixels"),  # a digit of another script
        ({"crop": 0}, "crop is 0; give a whole number from 1 to 65536"),
        ({"anchor_threshold": 2.0}, "anchor threshold 2.0 is not a cosine"),
        ({"anchor_threshold": float("nan")}, "nan"),
        ({"preset": "nothing.json"}, r"the preset nothing\.json cannot be read"),
    ],
)
def test_every_fault_is_one_sentence(options, reason):
    with pytest.raises(UserError, match=reason):
        settings_from_options(**options)


def test_an_unknown_field_gets_its_nearest():
    with pytest.raises(UserError, match="'anchor_treshold' is not a setting; did you mean anchor_threshold"):
        with_fields(SegmenterConfig(), {"anchor_treshold": 0.5})


@pytest.mark.parametrize("method", ["maskclip", "sclip", "gla-clearclip"])
def test_a_calibration_that_a_method_cannot_take_is_refused_from_python_too(method):
    """It did nothing, without a word."""
    with pytest.raises(UserError, match=f"the method {method} compares none; leave it out, or choose gla"):
        with_fields(SegmenterConfig(), {"calibration": "centred", "method": method})
    calibrated = with_fields(SegmenterConfig(), {"calibration": "centred"})
    assert with_fields(calibrated, {"method": method}).method.calibration is None  # one that is only there goes


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"format": "gla-jax preset 1", "method": "gla", "windows": {"short_side": NaN}}',
        '{"format": "gla-jax preset 1", "method": "gla", "windows": {"short_side": 1.5}, "numbers": {}}',
        '{"format": "gla-jax preset 1", "method": ["gla"], "windows": {}, "numbers": {}}',
        '{"format": "gla-jax preset 1", "method": "gla", "windows": {"crop": "224"}, "numbers": {}}',
        '{"format": "gla-jax preset 1", "method": "gla", "windows": [], "numbers": 3}',
        "[]",
        "",
    ],
)
def test_a_damaged_preset_is_one_sentence(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        settings_from_options(preset=str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["logit_scale", "threshold", "rho", "temperature"])
def test_a_number_that_must_be_there_cannot_be_none(name):
    with pytest.raises(UserError, match="is None; give a number"):
        with_fields(SegmenterConfig(), {name: None})
    assert with_fields(SegmenterConfig(), {"alpha_beta": None}).method.dynamic_shift is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rho": 0.5, "anchor_threshold": 0.6}, "rho and anchor_threshold are two names of one setting; give one"),
        ({"rho": np.float32(5)}, "is not a cosine"),
        ({"short_side": np.array([336, 448])}, "short_side is .*; give a whole number"),
        ({"crop": [224]}, "crop is .*; give a whole number"),
    ],
)
def test_fields_from_python_are_refused_in_one_sentence(fields, reason):
    with pytest.raises(UserError, match=reason):
        with_fields(SegmenterConfig(), fields)
