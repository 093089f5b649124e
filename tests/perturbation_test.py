"""Perceptibility of perturbations."""

import numpy as np
import pytest

from saat_jax import perturbation
from tests import golden, reference


def _random_images(seed, shape):
    rng = np.random.default_rng(seed)
    images = rng.random(shape)
    return images, np.clip(images + rng.uniform(-0.1, 0.1, shape), 0, 1)


def test_perturbation_metrics_worked_by_hand():
    # One 2 x 2 channel with d = [[0.3, -0.4], [0, 0]], the other unchanged. The largest row
    # sum is 0.7; the only singular value is 0.5; both are halved by the mean over channels.
    images = np.full((1, 2, 2, 2), 0.5)
    adversarial = images.copy()
    adversarial[0, 0, :, 0] += [0.3, -0.4]
    metrics = perturbation.perturbation_metrics(images, adversarial)
    expected = {
        "linf": 0.4,
        "l2": 0.5,
        "mse": 0.25 / 8,
        "psnr": 10 * np.log10(32),
        "matrix_norm_linf": 0.35,
        "matrix_norm_l2": 0.25,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], [value], rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 6, 4, 1), (1, 1, 1, 2)])
def test_perturbation_metrics_match_reference(shape):
    images, adversarial = _random_images(0, shape)
    metrics = perturbation.perturbation_metrics(images, adversarial)
    for i in range(shape[0]):
        expected = reference.perceptibility(images[i], adversarial[i])
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=1e-10)


def test_unchanged_images():
    images = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    metrics = perturbation.perturbation_metrics(images, images)
    assert np.all(np.isposinf(metrics.pop("psnr")))
    for values in metrics.values():
        np.testing.assert_array_equal(values, 0)


def test_summary_worked_by_hand():
    metrics = {"linf": np.array([0.1, 0.3]), "mse": np.array([0.0, 0.02]), "l2": np.array([0, 2.0])}
    summary = perturbation.summarize_perturbation(metrics)
    # The mean mse is 0.01: root 0.1, 20 dB. A mean of the images' psnr would be infinite.
    expected = {"linf": 0.3, "mse": 0.01, "l2": 1.0, "psnr": 20.0, "root_mean_square": 0.1}
    assert summary == pytest.approx(expected)
    assert all(type(value) is float for value in summary.values())


def test_summary_does_not_depend_on_batches():
    images, adversarial = _random_images(1, (5, 4, 6, 3))
    whole = perturbation.perturbation_metrics(images, adversarial)
    parts = [
        perturbation.perturbation_metrics(images[rows], adversarial[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert perturbation.summarize_perturbation(joined) == perturbation.summarize_perturbation(whole)
    assert perturbation.summarize_perturbation(whole)["root_mean_square"] == pytest.approx(
        np.sqrt(np.mean((images - adversarial) ** 2))
    )


@pytest.mark.parametrize(
    ("images", "adversarial", "message"),
    [
        (np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 1)), "adversarial must .*batch=1.*channels=3"),
        (np.zeros((2, 2, 3)), np.zeros((2, 2, 3)), "images must .*batch, height.*got \\(2, 2, 3"),
        (np.zeros((0, 2, 2, 3)), np.zeros((0, 2, 2, 3)), "not be empty"),
        (np.full((1, 2, 2, 3), 255, np.uint8), np.zeros((1, 2, 2, 3)), r"images must .*255"),
        (np.zeros((1, 2, 2, 3)), np.full((1, 2, 2, 3), -0.1), r"adversarial must .*\[0, 1\]"),
        (np.zeros((1, 2, 2, 3)), np.full((1, 2, 2, 3), np.nan), r"adversarial must .*nan"),
        (np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 8, 8)), r"PyTorch's order"),
    ],
)
def test_bad_input_is_refused(images, adversarial, message):
    with pytest.raises(ValueError, match=message):
        perturbation.perturbation_metrics(images, adversarial)


def test_golden_perceptibility():
    case = golden.load("perceptibility")
    metrics = perturbation.perturbation_metrics(golden.nhwc(case["x1"]), golden.nhwc(case["x2"]))
    summary = perturbation.summarize_perturbation(metrics)
    actual = [summary[name] for name in ("matrix_norm_linf", "matrix_norm_l2", "mse")]
    np.testing.assert_allclose(actual, case["value"], rtol=case.tolerance("rel"))


def test_golden_formula_perceptibility():
    formula = golden.formula("perceptibility")
    difference = golden.nhwc(np.array(formula.inputs["delta_NCHW"]))
    # The vector leaves [0, 1]; norms scale with the difference, so it is shrunk into the box.
    scale = np.abs(difference).max()
    images, adversarial = np.maximum(-difference, 0) / scale, np.maximum(difference, 0) / scale
    metrics = perturbation.perturbation_metrics(images, adversarial)
    summary = perturbation.summarize_perturbation(metrics)
    tolerance = {"rtol": 0, "atol": formula.tolerance}
    expected = formula.expected
    for norm in ("linf", "l2"):
        actual = scale * metrics[f"matrix_norm_{norm}"]
        np.testing.assert_allclose(actual, np.mean(expected[f"{norm}_per"], axis=1), **tolerance)
        actual = scale * summary[f"matrix_norm_{norm}"]
        np.testing.assert_allclose(actual, expected[norm], **tolerance)
    np.testing.assert_allclose(scale**2 * summary["mse"], expected["mse"], **tolerance)
    actual = scale * summary["root_mean_square"]
    np.testing.assert_allclose(actual, expected["per_prosgan"], **tolerance)
