"""The frontier's grid: equal passes, and options that each defence has."""

import pytest

from configs import defenses as configs
from saat_jax import defenses
from saat_jax.pipeline import validation


@pytest.mark.parametrize("variant", ["frontier", "frontier_small"])
def test_the_frontier_is_trained_for_equal_passes_by_options_that_there_are(variant):
    config = configs.get_config(variant)
    if variant == "frontier_small":
        config.data.root = "anywhere"
    validation.validate(config)
    saat = config.defenses.saat
    # By hand: two passes a step, and two images forward and backward.
    whole = saat.num_epochs * (2 * 7 + 4)
    assert len(config.defenses) == 20
    for name, stage in config.defenses.items():
        options = stage.options
        passes = 2 * options.num_steps + 4 * (2 if options.get("weight_perturbation") else 1)
        passes += stage.name == "teacher" or stage.get("state", {}).get("teacher", False)
        assert abs(stage.num_epochs * passes / whole - 1) < 0.07, name
        known = defenses.DEFENSES[stage.name]
        assert {*options} <= {*known.options} and {*stage.get("state", {})} <= {
            *known.state_options
        }, name
        assert stage.batch_size == saat.batch_size and stage.schedule == saat.schedule
