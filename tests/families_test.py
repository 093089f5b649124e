"""Training, hardening and attack run unchanged for every objective and every family of networks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from saat_jax import attacks, defenses, mainstay, networks, objectives, parallel

BANK_SIZE, NUM_BITS, NUM_CLASSES = 20, 8, 4
OPTIMIZER = optax.sgd(0.05)
SAAT = {"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 1}
CONVNET = networks.create_network("convnet", num_bits=NUM_BITS, widths=(4,))
# With few channels and blocks, as compiling takes the time, at the smallest images they take.
_NARROW = {"num_bits": NUM_BITS, "widths": (4, 4, 6, 6, 8), "hidden": 16}
FAMILIES = {
    "alexnet": (networks.create_network("alexnet", **_NARROW), 63),
    "vgg": (networks.VGG(stages=(1, 1, 1, 1, 1), **_NARROW), 32),
    "vit": (
        networks.VisionTransformer(
            NUM_BITS, width=8, depth=1, num_heads=2, patch_size=4, grid=2, pool="mean"
        ),
        8,
    ),
    "resnet": (networks.ResNet(NUM_BITS, stages=(1, 1), bottleneck=False, width=4), 32),
}


def _variables(model, image_size):
    """Random variables, without compiling an `init`."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _bank():
    rng = np.random.default_rng(1)
    codes = rng.choice([-1.0, 1.0], (BANK_SIZE, NUM_BITS)).astype(np.float32)
    labels = (rng.random((BANK_SIZE, NUM_CLASSES)) < 0.4).astype(np.float32)
    return objectives.CodeBank(codes, labels)


def _batch(image_size):
    """The first images of the training set; then padding, so that 8 devices get unequal shares."""
    rng = np.random.default_rng(2)
    images = rng.random((16, image_size, image_size, 3), np.float32)
    mask = np.arange(16) < 13
    return {
        "image": images,
        # Drawn inside, it would take half the time of compiling.
        "start": images + rng.uniform(-8 / 255, 8 / 255, images.shape).astype(np.float32),
        "label": _bank().labels[:16],
        "index": np.where(mask, np.arange(16), BANK_SIZE).astype(np.int32),
        "mask": mask.astype(np.float32),
    }


def _mapped(update, num_devices):
    """The update over so many devices; `defenses_test` shows that pmap gives the same bits."""
    return jax.shard_map(
        functools.partial(update, axis_name=parallel.AXIS),
        mesh=Mesh(jax.devices()[:num_devices], (parallel.AXIS,)),
        in_specs=(PartitionSpec(), PartitionSpec(parallel.AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def _compiled(update, num_devices=1):
    run = jax.jit(_mapped(update, num_devices))
    return lambda state, batch: jax.device_get(run(state, batch))


def _first_state(objective, variables):
    """Before training."""
    first = objective.init(jax.random.key(0), _bank().labels, NUM_BITS)
    return defenses.init_state(variables, OPTIMIZER, first)


def _hardening_state(state):
    """After training."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return defenses.init_minimax_state(
        variables, OPTIMIZER, state.objective, _bank(), _bank().labels, jax.random.key(0)
    )


def _assert_trained(before, after, metrics):
    for values in jax.tree.leaves((after, metrics)):
        assert np.all(np.isfinite(values))
    parts = [(state.params, state.objective.params, state.batch_stats) for state in (before, after)]
    old, new = map(jax.tree_util.tree_leaves_with_path, parts)
    for (path, x), (_, y) in zip(old, new, strict=True):
        # Nothing is cut off; but what a normalisation follows has no gradient in its scale.
        assert path[-1].key == "scale" or not np.array_equal(x, y), path


@functools.cache
def _attack(model):
    """Two steps of PGD, compiled once for all objectives."""
    settings = {"epsilon": 8 / 255, "step_size": 4 / 255, "num_steps": 2, "targeted": False}
    encode_fn = networks.make_encode_fn(model)

    def attack(variables, images, anchors):
        adversarial = attacks.pgd(
            encode_fn, variables, images, anchors, jax.random.key(0), start=images, **settings
        )
        codes = [encode_fn(variables, x, 1.0) for x in (images, adversarial)]
        return adversarial, [jnp.mean(x * anchors) for x in codes]

    return jax.jit(attack)


def _assert_attacked(model, state, batch):
    bank, images = state.code_bank, batch["image"]
    anchors = mainstay.mainstay_codes(batch["label"], bank.codes, bank.labels)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    adversarial, (clean, attacked) = _attack(model)(variables, images, anchors)
    assert np.max(np.abs(adversarial - images)) <= 8 / 255 + 1e-6
    assert np.min(adversarial) >= 0 and np.max(adversarial) <= 1
    assert attacked < clean


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_every_objective_trains_hardens_and_is_attacked(name):
    objective, batch = objectives.create_objective(name), _batch(8)
    first = state = _first_state(objective, _variables(CONVNET, 8))
    train = _compiled(defenses.make_hashing_update(CONVNET, objective, OPTIMIZER, seed=3))
    for _ in range(2):
        state, metrics = train(state, batch)
    _assert_trained(first, state, metrics)

    # The attack takes its gradient but no step: the sign of a gradient near zero may differ.
    settings = SAAT | {"step_size": 0.0}
    state = _hardening_state(state)
    update = defenses.make_saat_update(CONVNET, objective, OPTIMIZER, seed=3, **settings)
    one, eight = (_compiled(update, count)(state, batch) for count in (1, 8))
    chex.assert_trees_all_equal_shapes_and_dtypes(one, eight)
    chex.assert_trees_all_close(one, eight, rtol=1e-4, atol=1e-5)
    _assert_trained(state, *one)
    _assert_attacked(CONVNET, one[0], batch)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_hardens_and_is_attacked(name):
    model, image_size = FAMILIES[name]
    batch, objective = _batch(image_size), objectives.create_objective("dph")
    state = _hardening_state(_first_state(objective, _variables(model, image_size)))
    update = defenses.make_saat_update(model, objective, OPTIMIZER, seed=3, **SAAT)
    after, metrics = _compiled(update)(state, batch)
    _assert_trained(state, after, metrics)
    _assert_attacked(model, after, batch)


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg11_bn", "resnet18"])
def test_real_networks_keep_the_shapes_of_their_state(name):
    # Traced, not run: VGG11 has 129 million parameters.
    model, objective = networks.create_network(name, num_bits=NUM_BITS), objectives.Dph()
    images = jax.ShapeDtypeStruct((16, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    batch = _batch(1) | {"image": images, "start": images}
    state = jax.eval_shape(
        lambda variables: _hardening_state(_first_state(objective, variables)), variables
    )
    update = defenses.make_saat_update(model, objective, OPTIMIZER, seed=3, **SAAT)
    after, metrics = jax.eval_shape(_mapped(update, 8), state, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert metrics["loss"].shape == ()
