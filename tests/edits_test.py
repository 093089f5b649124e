"""Edits: Pillow's, their forms with a gradient, and what they do to matches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from saat_jax import edits, evaluation, reports
from saat_jax.datasets.photos import Photos
from saat_jax.evaluation.edited import recall_at
from tests import audit_test
from tests.audit_test import codes_of, make

pytestmark = pytest.mark.usefixtures("quick_compilation")
brief = audit_test.brief
COARSE = np.random.default_rng(1).uniform(40, 215, (12, 4, 4, 3))
IMAGES = [*np.asarray(jax.image.resize(COARSE, (12, 16, 16, 3), "linear")).astype(np.uint8)]
POINT = {"radius": 4}


def _photo():
    """Smooth, with edges and colours, of sides that are no multiples of anything."""
    y, x = np.mgrid[:67, :90]
    planes = [np.sin(x / 9 + y / 20), np.cos(y / 7), (x // 15 + y // 11) % 2 - 0.5]
    return np.round(128 + 100 * np.clip(np.stack(planes, -1), -1, 1)).astype(np.uint8)


@pytest.mark.parametrize("name", edits.all_edits())
def test_the_soft_form_is_close_to_pillow_and_has_a_gradient(name):
    image = _photo()
    applied = edits.apply(name, image)
    soft, pull = jax.vjp(lambda x: edits.soften(name, x), jnp.asarray(image[None] / 255.0))
    assert applied.dtype == np.uint8 and applied.shape == soft.shape[1:]
    apart = np.abs(applied - 255 * np.asarray(soft[0]))
    # Pillow rounds to 8 bits, and blurs and turns by approximations of its own.
    assert apart.mean() < 2
    (gradient,) = pull(jnp.ones_like(soft))
    assert np.isfinite(gradient).all() and np.abs(gradient).sum() > 0


def test_what_is_no_edit_is_refused():
    for name, message in [
        ("jpeg", "a kind and a strength such as 'jpeg_75', got 'jpeg'"),
        ("jpg_75", "expected one of"),
        ("jpeg_0", "strength of the edit 'jpeg' must be"),
        ("jpeg_7.5", "a kind and a strength"),
    ]:
        with pytest.raises(ValueError, match=message):
            edits.named(name)


def test_recall_at_a_precision_is_that_of_the_curve():
    rng = np.random.default_rng(0)
    own, other = rng.integers(0, 20, 60), rng.integers(8, 40, 60)
    precision, recall, _ = metrics.precision_recall_curve(
        np.repeat([1, 0], 60), -np.concatenate([own, other])
    )
    for wanted in (0.6, 0.8, 0.95, 1.0):
        assert recall_at(own, other, wanted)[0] == pytest.approx(recall[precision >= wanted].max())
    assert recall_at(np.array([5.0]), np.array([1.0]), 1.0) == (0.0, None)


@pytest.fixture(scope="module")
def measured(brief, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits")
    matcher = evaluation.Matcher(make(), IMAGES, POINT, seed=3, batch_size=8)
    names = ("jpeg_75", "crop_25", "flip_1")
    record = evaluation.edited(
        matcher, folder=folder, epsilon=3 / 255, survive=["jpeg_75"], names=names
    )
    return record, folder


def test_the_share_that_an_edit_loses_is_that_of_its_codes(measured):
    record, folder = measured
    arrays, originals = dict(np.load(folder / "edits.npz")), codes_of(IMAGES)
    for name in record["names"]:
        copies = Photos((), tuple(edits.apply(name, image) for image in IMAGES)).fitted((16, 16))
        apart = np.sum(codes_of(copies.images)[:, None] != originals, axis=2)
        np.testing.assert_array_equal(arrays[f"{name}/own"], np.diag(apart))
        other = np.where(np.eye(12), 99, apart).min(axis=1)
        np.testing.assert_array_equal(arrays[f"{name}/other"], other)
        assert record["edits"][name]["alone"]["count"] == np.sum(np.diag(apart) > 4)
    assert record["edits"]["none"]["alone"]["count"] == 0
    assert record["edits"]["none"]["recall"] == 1


def test_an_attack_through_an_edit_survives_it(measured):
    line = measured[0]["edits"]["jpeg_75"]
    assert line["surviving"]["count"] > line["attacked"]["count"] >= 0
    assert line["surviving"]["count"] > line["alone"]["count"]


def test_the_table_and_the_page_show_edits_alone(measured, capsys):
    record, folder = measured
    reports.show_audit(folder)
    assert "attack through jpeg_75" in capsys.readouterr().out
    assert "crop 25" in (folder / "report.html").read_text()
    again = evaluation.edited(
        evaluation.Matcher(make(run=None), IMAGES, POINT, seed=3, batch_size=8),
        folder=folder,
        epsilon=3 / 255,
        survive=["jpeg_75"],
        names=record["names"],
    )
    assert again == record
