"""Hash layers in closed form: against scikit-learn, loops of NumPy, and in a run."""

import jax
import numpy as np
import pytest

from configs import demo
from saat_jax import networks, pipeline
from saat_jax.networks import heads

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _features(num_images=300, width=12, seed=0):
    """Correlated features away from zero, with directions of clearly different variance."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(num_images, width)) * 0.7 ** np.arange(width)
    return (mixed @ rng.normal(size=(width, width)) + 3).astype(np.float32)


def _outputs(features, head):
    return features @ head.kernel + head.bias


def test_pca_is_that_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = _features()
    actual = _outputs(features, networks.pca_head(features, num_bits=5))
    expected = decomposition.PCA(5).fit_transform(features.astype(np.float64))
    expected = expected / np.sqrt(np.mean(expected**2))
    expected = expected * np.sign(np.sum(expected * actual, axis=0))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_itq_is_that_of_the_paper():
    features, num_bits, seed = _features(), 5, 3
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:num_bits].T
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, range(num_bits)])
    components = centred @ directions
    rotation, losses = heads.random_rotation(num_bits, seed=seed), []
    size = np.sqrt(np.mean(components**2))
    for _ in range(7):
        codes = np.sign(components @ rotation)
        losses.append(np.sum((codes - components / size @ rotation) ** 2))
        # Procrustes: of V' B = U S W', the rotation U W'.
        u, _, w = np.linalg.svd(components.T @ codes)
        rotation = u @ w
    assert np.all(np.diff(losses) <= 1e-9) and losses[-1] < losses[0] - 1
    head = networks.itq_head(features, num_bits=num_bits, seed=seed, num_iterations=7)
    np.testing.assert_allclose(_outputs(features, head), components @ rotation / size, atol=1e-4)


def test_itq_turns_the_components():
    features = _features()
    pca = networks.pca_head(features, num_bits=5)
    itq = networks.itq_head(features, num_bits=5)
    rotation, *_ = np.linalg.lstsq(pca.kernel, itq.kernel, rcond=None)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(5), atol=1e-4)
    errors = [np.mean((np.abs(_outputs(features, head)) - 1) ** 2) for head in (pca, itq)]
    assert errors[1] < 0.9 * errors[0]


def test_random_rotations_are_uniform():
    rotations = np.stack([heads.random_rotation(3, seed=seed) for seed in range(2000)])
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), [np.eye(3)] * 2000, atol=1e-12)
    # Every entry of a uniform one has mean 0 and variance 1 / 3.
    np.testing.assert_allclose(rotations.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(rotations.var(0), 1 / 3, atol=0.03)


@pytest.mark.parametrize("name", networks.HEADS)
def test_heads_are_centred_scaled_and_reproducible(name):
    features = _features()
    head, again = (networks.HEADS[name](features, num_bits=6, seed=1) for _ in range(2))
    outputs = _outputs(features, head)
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.mean(outputs**2), 1, rtol=1e-4)
    assert head.kernel.dtype == head.bias.dtype == np.float32
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(head, again, strict=True))
    other = networks.HEADS[name](features, num_bits=6, seed=2)
    assert np.array_equal(other.kernel, head.kernel) == (name == "pca")


def test_random_hyperplanes_tell_angles():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 8)).astype(np.float32)
    head = networks.lsh_head(features, num_bits=20_000)
    bits = _outputs(features, head) > 0
    a, b = features[:2] - features.mean(0)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    # Charikar: the share of bits that differ is the angle by pi.
    assert abs(np.mean(bits[0] != bits[1]) - angle / np.pi) < 0.02


@pytest.mark.parametrize(
    "features, num_bits, message",
    [
        (_features(width=4), 5, "at most the 4 directions in which features of 300 images vary"),
        (_features(num_images=4), 4, "at most the 3 directions .* 4 images .*got 4; take more"),
        (_features()[0], 2, r"features must be of shape \[images, width\]"),
        (np.full((4, 4), np.nan, np.float32), 2, "features must be finite floats"),
        (np.ones((4, 4), np.int32), 2, "features must be finite floats"),
        (_features(), 0, "num_bits must be a whole number"),
    ],
)
@pytest.mark.parametrize("name", ["pca", "itq"])
def test_what_cannot_be_fitted_is_refused(name, features, num_bits, message):
    with pytest.raises(ValueError, match=message):
        networks.HEADS[name](features, num_bits=num_bits, seed=0)


def test_a_head_becomes_the_networks_hash_layer():
    model = networks.create_network("convnet", num_bits=4, widths=(4, 8))
    variables = networks.init_variables(model, jax.random.key(0), image_size=8)
    images = np.random.default_rng(0).random((24, 8, 8, 3), np.float32)
    features = np.asarray(networks.make_features_fn(model)(variables, images))
    assert features.shape == (24, 8)
    batches = [images[:16], images[16:]]
    fitted = networks.fit_head(model, variables, batches, head="itq", seed=5)
    expected = _outputs(features, networks.itq_head(features, num_bits=4, seed=5))
    codes = networks.make_encode_fn(model)(fitted, images)
    np.testing.assert_allclose(codes, np.tanh(expected), atol=1e-4)
    with pytest.raises(ValueError, match=r"the head must be of shape \(8, 4\), .* got \(8, 3\)"):
        networks.with_head(variables, networks.pca_head(features, num_bits=3))
    with pytest.raises(ValueError, match="unknown head 'lda'.*'itq', 'lsh', 'pca'"):
        networks.fit_head(model, variables, batches, head="lda")
    with pytest.raises(ValueError, match="expected a hash layer named one of"):
        networks.with_head({"params": {"code": {}}}, networks.pca_head(features, num_bits=3))


def test_a_run_fits_a_head_instead_of_training(tmp_path, capsys):
    config = demo.get_config("smoke").to_dict()
    config["task"] = "train_hash"
    config["model"] |= {"num_bits": 8, "head": "itq"}
    pipeline.run(config, tmp_path)
    run = pipeline.Run(config, tmp_path)
    encode_fn, variables, checkpoint = run.load_model("pretrained")
    assert checkpoint.step == 0 and checkpoint.metadata["best_map"] > 0
    # What it was fitted to: the features that the first weights give of the training images.
    model = networks.create_network("convnet", num_bits=8, widths=config["model"]["widths"])
    first = networks.init_variables(
        model, jax.random.key(config["seed"]), image_size=run.data.image_size
    )
    images = run.load_images(run.data.train, range(len(run.data.train)))
    expected = networks.fit_head(model, first, [images], head="itq", seed=config["seed"])
    np.testing.assert_allclose(encode_fn(variables, images), encode_fn(expected, images), atol=1e-3)
    capsys.readouterr()
    # Of how it would be trained nothing is left to decide the result.
    config["pretrain"]["schedule"]["learning_rate"] = 0.5
    pipeline.run(config, tmp_path)
    told = capsys.readouterr().out
    assert "models/pretrained: trained already, 0 steps" in told
    score = f"pretrained: MAP {100 * checkpoint.metadata['best_map']:.2f} % without an attack, in "
    assert f"{score}{tmp_path / 'models' / 'pretrained'}; next, with this" in told
    # It is hardened as others are, here with an average, which is what it is judged by.
    config["task"] = "harden"
    config["defenses"]["hardened"]["optimizer"]["average"] = 0.9
    pipeline.run(config, tmp_path)
    _, variables, checkpoint = run.load_model("hardened")
    assert checkpoint.step > 0
    last, average = checkpoint.state["params"], variables["params"]
    apart = jax.tree.map(lambda x, y: np.abs(x - y).max(), last, jax.device_get(average))
    assert 0 < max(jax.tree.leaves(apart)) < 0.1
    assert "hardened: MAP " in capsys.readouterr().out
    config["model"]["head"] = "lda"
    with pytest.raises(ValueError, match="model.head|unknown head 'lda'"):
        pipeline.run(config, tmp_path)
