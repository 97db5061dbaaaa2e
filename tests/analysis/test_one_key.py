"""The share of tokens that keep one single key: against the oracle's attention, and what the commands say of it."""

import numpy as np
import pytest

from gla_jax.analysis.crossing import crossings, lines, summary
from gla_jax.analysis.encoded import encode_image
from gla_jax.analysis.explain import attention_stages, explain
from gla_jax.analysis.explain_pictures import stage_note
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.segmenter import Segmenter
from tests import oracle
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), CONFIG)


@pytest.mark.parametrize("alpha_beta", [0.0, 0.3, 2.0])
def test_tokens_that_keep_one_key_are_those_of_the_oracle(segmenter, alpha_beta):
    changed = segmenter.with_settings(alpha_beta=alpha_beta)
    tokens, prepared = encode_image(changed.model, IMAGE, [changed.config])
    count = prepared.grid.count
    keys = oracle.l2(np.asarray(tokens.compared(changed.config.method)[0], np.float64)[:count].reshape(count * 16, -1))
    found = crossings(changed, IMAGE)
    for name, method in attention_stages(changed.config.method).items():
        weights = oracle.attend(keys, np.eye(len(keys)), count, method)
        expected = (weights > 0).sum(1) == 1
        np.testing.assert_array_equal(found.stages[name].one_key.ravel(), expected)
        assert summary([found])["stages"][name]["one_key"] == pytest.approx(100 * expected.mean())


def test_a_setting_under_which_tokens_keep_one_key_is_pointed_out(segmenter):
    """A shift above every similarity: each row keeps its largest entry alone, and a panel is empty but for a point."""
    for alpha_beta, idle in ((0.0, False), (1000.0, True)):
        changed = segmenter.with_settings(alpha_beta=alpha_beta, rho=-1.0)
        said = "\n".join(lines(summary([crossings(changed, IMAGE)])))
        assert ("more than 20% of the tokens keep one single key" in said) == idle
        assert ("try another rho (--anchor-threshold)" in said) == idle
        drawn = explain(changed, IMAGE, (20, 20)).stages[-1]
        assert ("one single key is kept: try another rho" in stage_note(drawn, None)) == idle
