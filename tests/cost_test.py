"""What saves memory or time, and that it changes nothing else."""

import functools
import pathlib
import re

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import cost
from configs import defenses as defenses_config
from configs import demo
from saat_jax import defenses, networks, objectives, optimizers, parallel, training
from saat_jax.pipeline import Run
from saat_jax.pipeline.parts import make_network, make_optimizer

DOCS = (pathlib.Path(__file__).parents[1] / "docs" / "cost.md").read_text()
# A small one of each family, and images for it.
FAMILIES = {
    "alexnet": (networks.AlexNet(4, widths=(2, 3, 4, 3, 2), hidden=5), 63),
    "convnet": (networks.ConvNet(4, widths=(3, 4)), 8),
    "resnet": (networks.ResNet(4, stages=(2, 1), bottleneck=False, width=4), 16),
    "vgg": (networks.VGG(4, (1, 2, 1, 1, 1), True, widths=(2, 3, 4, 3, 2), hidden=5), 32),
}

# --- rematerialisation ---


REMAT = "remat2"
PASSING = networks.Training(jax.random.split(jax.random.key(1), 3), jnp.array([1.0, 1, 0]))


def _images_and_variables(model, size):
    """Arrays of the shapes that a network has, without compiling an `init`."""
    rng = np.random.default_rng(0)
    images = rng.random((3, size, size, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return images, jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)


def _operations(jaxpr):
    """The operations of a program in their order, those that are done again among them."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == REMAT:
            yield from _operations(equation.params["jaxpr"])
        else:
            yield equation.primitive.name, [str(output.aval) for output in equation.outvars]


@pytest.mark.parametrize("family", FAMILIES)
def test_remat_changes_neither_parameters_nor_operations(family):
    plain, size = FAMILIES[family]
    programs, shapes = [], []
    for model in (plain, plain.clone(remat=True)):
        images, variables = _images_and_variables(model, size)
        shapes.append(jax.tree.map(np.shape, variables))
        stats = variables.get("batch_stats", {})
        forward = functools.partial(networks.forward, model)
        program = jax.make_jaxpr(forward)(variables["params"], stats, images, PASSING).jaxpr
        programs.append(program)
    assert shapes[0] == shapes[1]
    names = [{equation.primitive.name for equation in program.eqns} for program in programs]
    assert REMAT in names[1] - names[0]
    # All convolutions are in parts that are done again; linear layers need not be.
    convolutions = [
        [
            equation
            for equation in program.eqns
            if equation.primitive.name in ("conv_general_dilated", "custom_vjp_call")
            and equation.outvars[0].aval.ndim == 4
        ]
        for program in programs
    ]
    assert convolutions[0] and not convolutions[1]
    assert [*_operations(programs[0])] == [*_operations(programs[1])]


def test_remat_changes_no_value():
    plain, size = FAMILIES["convnet"]
    images, variables = _images_and_variables(plain, size)

    def results(model):
        def loss(params, images):
            codes, stats = networks.forward(
                model, params, variables["batch_stats"], images, PASSING, 3.0
            )
            return jnp.sum(codes * PASSING.mask[:, None]), (codes, stats)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], images)

    gradients, outputs = results(plain)
    remat_gradients, remat_outputs = results(plain.clone(remat=True))
    chex.assert_trees_all_equal(remat_outputs, outputs)
    chex.assert_trees_all_close(remat_gradients, gradients, rtol=1e-5, atol=1e-7)
    assert np.any(gradients[1])


@pytest.mark.parametrize("name", ["alexnet", "convnet", "vgg11"])
def test_gradients_keep_less_with_remat_and_with_bfloat16(name):
    size = cost.NETWORKS[name]
    plain, remat, half, half_remat = (
        cost.kept_bytes(name, image_size=size, **options) for options in cost.VARIANTS.values()
    )
    assert remat < plain / 2 and half < plain and half_remat < remat


def test_a_choice_of_remat_is_checked():
    with pytest.raises(ValueError, match="remat must be True or False, got 'yes'"):
        networks.create_network("convnet", num_bits=4, remat="yes")


# --- gradient accumulation ---


def _path(optimizer, gradients):
    """The parameter after each gradient, from zero."""
    params, path = jnp.float32(0), []
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(jnp.float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params))
    return path


def test_accumulation_worked_by_hand():
    # Rates 1, 10, 100, ... of the steps 0 to 4: updates take those of steps 0, 2 and 4.
    optimizer = optimizers.make_optimizer(
        "sgd", lambda step: 10.0**step, num_steps=5, momentum=0.5, accumulate=2
    )
    # Means 2 and 6, then 9 alone; momentum 2, 6 + 1 = 7, 9 + 3.5 = 12.5.
    path = _path(optimizer, [1, 3, 5, 7, 9])
    np.testing.assert_allclose(path, [0, -2, -2, -702, -702 - 125000])


def test_adam_counts_updates_and_decays_the_parameter_once():
    settings = {"schedule": lambda step: 0.1, "beta1": 0.5, "weight_decay": 0.1}
    once = optimizers.make_optimizer("adam", num_steps=2, **settings)
    thrice = optimizers.make_optimizer("adam", num_steps=6, accumulate=3, **settings)
    path = _path(thrice, [1, 2, 3, -4, 0, -2])
    np.testing.assert_allclose(path[2::3], _path(once, [2, -2]), rtol=1e-5)
    assert path[1] == 0 and path[3] == path[2]


BITS, CLASSES = 4, 3
CSQ = objectives.create_objective("csq")


class LinearNet(nn.Module):
    """Without dropout and batch statistics."""

    num_bits: int

    @nn.compact
    def __call__(self, images, alpha=1.0, *, training=None):
        pixels = networks.flatten_channels_first(images)
        return jnp.tanh(alpha * networks.Dense(self.num_bits, name="hash")(pixels))


def _passes():
    """Two times 32 images, in passes of 8."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.random((8, 2, 2, 3), np.float32),
            "label": np.eye(CLASSES, dtype=np.float32)[rng.integers(CLASSES, size=8)],
            "index": np.arange(8, dtype=np.int32),
            "mask": np.ones(8, np.float32),
        }
        for _ in range(8)
    ]


def test_four_passes_of_eight_images_are_one_of_thirty_two():
    kernel = np.random.default_rng(1).normal(size=(12, BITS)).astype(np.float32)
    variables = {"params": {"hash": {"kernel": kernel, "bias": np.zeros(BITS, np.float32)}}}
    objective = CSQ.init(jax.random.key(0), np.eye(CLASSES, dtype=np.float32), BITS)

    def train(batches, *, accumulate, num_devices):
        optimizer = optimizers.make_optimizer(
            "sgd",
            lambda step: 0.5 if step < accumulate else 0.1,
            num_steps=len(batches),
            momentum=0.9,
            weight_decay=5e-4,
            accumulate=accumulate,
        )
        update = defenses.make_hashing_update(LinearNet(BITS), CSQ, optimizer, seed=0)
        mapped = jax.pmap(
            functools.partial(update, axis_name=parallel.AXIS),
            axis_name=parallel.AXIS,
            devices=jax.devices()[:num_devices],
        )
        state = defenses.init_state(variables, optimizer, objective)
        state = jax.tree.map(lambda x: np.stack([x] * num_devices), state)
        for batch in batches:
            shares = {k: x.reshape(num_devices, -1, *x.shape[1:]) for k, x in batch.items()}
            state, _ = mapped(state, shares)
        assert parallel.replicas_agree(state)
        return jax.tree.map(lambda x: np.asarray(x)[0], state)

    passes = _passes()
    whole = [
        {name: np.concatenate([batch[name] for batch in passes[at : at + 4]]) for name in passes[0]}
        for at in (0, 4)
    ]
    expected = train(whole, accumulate=1, num_devices=1)
    assert expected.step == 2
    assert np.abs(kernel - expected.params["hash"]["kernel"]).max() > 1e-2
    for num_devices in (1, 8):
        found = train(passes, accumulate=4, num_devices=num_devices)
        assert found.step == 8
        chex.assert_trees_all_close(found.params, expected.params, rtol=1e-5, atol=1e-6)


@flax.struct.dataclass
class ToyState:
    """The least that `training.train` takes."""

    step: int
    params: float
    opt_state: object


def test_a_run_stopped_between_two_passes_goes_on_with_the_same_bits(tmp_path):
    optimizer = optimizers.make_optimizer(
        "adam", lambda step: 0.1, num_steps=8, weight_decay=0.1, accumulate=4
    )
    first = ToyState(jnp.int32(0), jnp.float32(1), optimizer.init(jnp.float32(1)))

    def update(state, batch, *, axis_name):
        gradient = state.params * jax.lax.pmean(jnp.mean(batch["image"]), axis_name)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return ToyState(state.step + 1, params, opt_state), {"loss": gradient}

    def train(folder, batches_from):
        return training.train(
            update,
            first,
            batches_from,
            folder=folder,
            steps_per_epoch=8,
            num_epochs=1,
            schedule=lambda step: 0.1,
            metadata={"identity": {}},
            checkpoint_every=3,
            progress=False,
        )

    def breaks_off(step):
        yield from _passes()[:5]
        raise RuntimeError("power cut")

    straight = train(tmp_path / "straight", lambda step: _passes()[step:])
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "broken", breaks_off)
    asked = []
    resumed = train(tmp_path / "broken", lambda step: asked.append(step) or _passes()[step:])
    assert asked == [3]
    assert straight.params != first.params
    chex.assert_trees_all_equal(resumed, straight)


# --- donation ---


def test_without_donation_the_state_stays():
    def update(state, batch, *, axis_name):
        return state + jax.lax.psum(jnp.sum(batch), axis_name), {}

    batch = parallel.shard_batch({"x": np.ones(8, np.float32)})["x"]
    for donate in (True, False):
        state = parallel.replicate(np.float32(1))
        mapped = parallel.map_update(update, donate=donate)
        assert parallel.unreplicate(mapped(state, batch)[0]) == 9
        assert state.is_deleted() == donate


# --- configs, benchmark, docs ---


def test_accumulation_and_numbers_of_a_stage():
    stage = {
        "schedule": {"name": "milestones", "learning_rate": 1.0},
        "optimizer": {"name": "sgd"},
        "accumulate": 2,
    }
    _, optimizer = make_optimizer(stage, num_epochs=2, steps_per_epoch=2)
    # Of 4 steps the rate drops at 2 and 3; the second update begins with step 2.
    np.testing.assert_allclose(_path(optimizer, [1, 1, 1, 1]), [0, -1, -1, -1.1], rtol=1e-6)
    config = demo.get_config("smoke").to_dict()
    config["pretrain"]["accumulate"] = 0
    with pytest.raises(ValueError, match="pretrain.accumulate must be a whole number"):
        Run(config, "unused")


def test_a_model_may_be_hardened_with_remat_though_trained_without(tmp_path):
    config = demo.get_config("smoke").to_dict()
    identities, data = [], None
    for remat in (False, True):
        config["model"]["remat"] = remat
        run = Run(config, tmp_path, data)
        data = run.data
        assert make_network(config["model"]).remat == remat
        identities.append(run.identity)
    assert identities[0] == identities[1]


def test_every_field_has_its_line():
    plain = defenses_config.get_config("digits").to_dict()
    flat = flax.traverse_util.flatten_dict(plain, sep=".")
    fields = re.findall(r"^- \*\*`([\w.]+)`\*\*", DOCS, flags=re.MULTILINE)
    assert fields == ["accumulate", "model.dtype", "model.remat", "donate"]
    for field in fields:
        assert any(name.endswith(field) for name in flat), field


def test_memory_of_an_update_worked_by_hand(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "linear", (LinearNet, {}, {}))
    memory = cost.update_memory("linear", image_size=2, batch_size=8)
    # Parameters and momentum; two banks of codes and labels; two counts of steps.
    state = 2 * (2 * 2 * 3 + 1) * cost.NUM_BITS + 2
    state += 2 * cost.BANK_SIZE * (cost.NUM_BITS + cost.NUM_CLASSES)
    # Image, label, index and mask.
    batch = 8 * (2 * 2 * 3 + cost.NUM_CLASSES + 2)
    assert memory["arguments"] == 4 * (state + batch)
    assert memory["donated"] == 4 * state
    assert memory["temporary"] > 0
