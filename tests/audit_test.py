"""The audit: what it counts as fooled is, by the encoder's own runtime, on the files it leaves."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from launch import command
from saat_jax import encoders, evaluation, reports, retrieval
from saat_jax.datasets.photos import Photos, load_photos
from saat_jax.evaluation import matcher
from saat_jax.retrieval import OperatingPoint
from tests import indexes_test

SIDE, NUM_BITS = 16, 24
RNG = np.random.default_rng(0)
PROJECTION = RNG.normal(size=(SIDE * SIDE * 3, NUM_BITS)).astype(np.float32)
PROJECTION -= PROJECTION.mean(axis=0)
IMAGES = [RNG.integers(30, 226, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(12)]
POINT = {"radius": 4}


def features(images):
    return images.reshape(len(images), -1) @ PROJECTION


def make(function=features, **changes):
    encoder = encoders.from_jax(function, image_size=(SIDE, SIDE), name="projection")
    return dataclasses.replace(encoder, **changes)


def codes_of(images):
    values = np.stack(images).reshape(len(images), -1) / np.float32(255) @ PROJECTION
    return values >= 0


pytestmark = pytest.mark.usefixtures("quick_compilation")
postgres = indexes_test.postgres

audit = functools.partial(evaluation.audit, epsilons=(1 / 255, 4 / 255), seed=3, batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def brief():
    """Fewer members and steps: what they find is another matter than how it is told."""
    few = {"codes": {"flight": {"loss": "weighted"}}, "cosine": {"cosine": {"loss": "plain_gain"}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matcher, "MEMBERS", few)
        patch.setattr(matcher, "NUM_STEPS", 30)
        patch.setattr(matcher, "NUM_QUERIES", 10)
        yield


@pytest.fixture(scope="module")
def audited(brief, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return audit(make(), IMAGES, POINT, folder=folder), folder


def _saved(folder, task, level, rows):
    return [
        np.asarray(Image.open(folder / "images" / task / str(level) / f"{r}.png")) for r in rows
    ]


def test_evasions_and_collisions_hold_on_the_saved_files(audited):
    record, folder = audited
    arrays = dict(np.load(folder / "audit.npz"))
    originals = codes_of(IMAGES)
    for task, lines in record["tasks"].items():
        rows, wanted = arrays[f"{task}/rows"], arrays[f"{task}/wanted"]
        for number, (level, line) in enumerate(zip((1, 4), lines, strict=True)):
            attacked = _saved(folder, task, level, rows)
            for row, image in zip(rows, attacked, strict=True):
                assert np.abs(image.astype(int) - IMAGES[row]).max() <= level
            apart = np.sum(codes_of(attacked)[:, None] != originals[wanted], axis=2).min(axis=1)
            np.testing.assert_array_equal(apart, arrays[f"{task}/apart"][number])
            done = apart > 4 if task == "evade" else apart <= 4
            assert (line["png"]["count"], line["png"]["trials"]) == (done.sum(), len(rows))
            np.testing.assert_array_equal(arrays[f"{task}/gain"][number] > 0, done)
    assert record["tasks"]["evade"][1]["png"]["rate"] > 0.9
    assert record["flags"] == []


def test_the_smallest_change_is_one_that_works_and_the_next_smaller_did_not(audited):
    record, folder = audited
    arrays = dict(np.load(folder / "audit.npz"))
    smallest = arrays["evade/smallest"]
    done = arrays["evade/gain"] > 0
    np.testing.assert_array_equal(smallest <= 1, done[0])
    np.testing.assert_array_equal(smallest <= 4, done[1])
    assert set(smallest[np.isfinite(smallest)]) <= {1.0, 2.0, 3.0, 4.0}
    known = record["smallest_epsilon"]["evade"]["median"]
    assert known == np.quantile(smallest, 0.5, method="higher")


def test_an_audit_is_not_made_again_and_another_is_put_beside_it(audited):
    record, folder = audited

    def never(images):
        raise AssertionError("encoded again")

    assert audit(make(run=never), IMAGES, OperatingPoint.create(**POINT), folder=folder) == record
    other = audit(make(), IMAGES[:6], POINT, folder=folder)
    assert other["images"]["number"] == 6
    kept = [*(folder / "earlier").glob("audit.*.json")]
    assert len(kept) == 1 and json.loads(kept[0].read_text()) == record
    again = audit(make(), IMAGES, POINT, folder=folder)
    assert again == record


def test_an_audit_that_was_stopped_goes_on_and_ends_the_same(audited, tmp_path, monkeypatch):
    record, _ = audited
    made = matcher.Matcher
    attack, left = made._attack_batch, [3]

    def stopping(self, *arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return attack(self, *arguments)

    monkeypatch.setattr(made, "_attack_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        audit(make(), IMAGES, POINT, folder=tmp_path)
    finished = len([*tmp_path.rglob("*.npz")])
    assert finished == 3 and not (tmp_path / "audit.json").exists()
    calls = []
    monkeypatch.setattr(made, "_attack_batch", lambda self, *a: calls.append(1) or attack(self, *a))
    assert audit(make(), IMAGES, POINT, folder=tmp_path) == record
    assert len([*tmp_path.rglob("*.npz")]) == 1
    alone = audit(make(), IMAGES, POINT, folder=tmp_path / "alone")
    assert alone == record


def _noisy(images):
    draw = np.random.default_rng()
    values = np.stack(images).reshape(len(images), -1) / np.float32(255) @ PROJECTION
    return values + draw.normal(size=values.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (lambda: make(lambda x: jax.lax.stop_gradient(features(x))), "no_gradient"),
        (lambda: make(run=_noisy), "random_output"),
        (lambda: make(run=lambda images: 2.0 * ~codes_of(images) - 1), "runtime_differs"),
        (
            lambda: encoders.from_function(
                lambda images: codes_of(images) - 0.5, image_size=(SIDE, SIDE)
            ),
            "no_gradient",
        ),
    ],
)
def test_ill_encoders_raise_their_flags(encoder, expected, tmp_path):
    record = audit(encoder(), IMAGES[:5], POINT, folder=tmp_path)
    assert expected in {flag["flag"] for flag in record["flags"]}


@pytest.mark.parametrize("point", [{"cosine": 0.9}, {"top_k": 1}, {"false_match_rate": 0.05}])
def test_other_points_are_attacked_too(point, tmp_path):
    record = audit(make(), IMAGES, point, folder=tmp_path, limit=4)
    assert record["tasks"]["evade"][-1]["png"]["trials"] == 4
    assert record["tasks"]["evade"][-1]["png"]["rate"] > 0
    reports.show_audit(tmp_path)


def test_images_of_many_sizes_and_others_that_are_listed(tmp_path):
    def any_size(images):
        small = jax.image.resize(images, (len(images), SIDE, SIDE, 3), "linear", antialias=False)
        return features(small)

    def run(images):
        return encoders.by_shape(images, lambda x: np.asarray(any_size(jnp.asarray(x))))

    sizes = [(16, 16), (20, 24), (16, 16), (31, 17)]
    images = [RNG.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    encoder = make(
        encode_fn=lambda variables, x, alpha: jnp.tanh(alpha * any_size(x)),
        run=run,
        image_size=None,
    )
    record = audit(encoder, images, {"radius": 2}, IMAGES[:3], folder=tmp_path)
    assert record["listed"] == 7 and record["images"]["number"] == 4
    assert record["tasks"]["evade"][-1]["png"]["rate"] == 1


def test_an_evasion_leaves_near_duplicates_too(audited, tmp_path):
    alone, folder = audited
    near = [
        np.clip(image.astype(int) + RNG.integers(-9, 10, image.shape), 0, 255) for image in IMAGES
    ]
    listed = Photos(tuple(f"{row}-copy" for row in range(12)), tuple(np.uint8(near)))
    others = Photos(tuple(f"{row}-own" for row in range(12)), tuple(IMAGES))
    record = audit(make(), others, POINT, listed, folder=tmp_path, groups=r"^(\d+)-")
    assert record["near_duplicates"] == 12
    assert record["false_match"]["trials"] == 24 * 22 // 2
    arrays, codes = dict(np.load(tmp_path / "audit.npz")), codes_of([*IMAGES, *listed.images])
    for number, (level, line) in enumerate(zip((1, 4), record["tasks"]["evade"], strict=True)):
        paths = [tmp_path / "images" / "evade" / str(level) / f"{row}-own.png" for row in range(12)]
        attacked = codes_of([np.asarray(Image.open(path)) for path in paths])
        apart = np.sum(attacked[:, None] != codes[None], axis=2)
        own = np.stack([apart[row, [row, row + 12]].min() for row in range(12)])
        np.testing.assert_array_equal(own, arrays["evade/apart"][number])
        assert line["png"]["count"] == np.sum(own > 4)
    for task in ("collide", "collide_any"):
        assert not np.any(arrays[f"{task}/wanted"] % 12 == arrays[f"{task}/rows"][:, None])
    assert "12 of 24 listed images are near-duplicates" in reports.audit_table(record)


@pytest.mark.parametrize("kind", ["faiss", "pgvector"])
def test_an_exact_index_says_what_arrays_say_and_others_stand_beside(
    kind, audited, tmp_path, request
):
    record, _ = audited
    if kind == "faiss":
        pytest.importorskip("faiss")
        exact = retrieval.faiss_index()
        near = retrieval.faiss_index("hash", num_hashed=16, num_flips=0)
    else:
        address = request.getfixturevalue("postgres")
        exact = retrieval.pgvector_index(address)
        near = retrieval.pgvector_index(address, table="near", approximate=True)
    made = {"exact": exact, "near": near}
    by_index = audit(make(), IMAGES, POINT, folder=tmp_path, indexes=made)
    for task, lines in by_index["tasks"].items():
        for line, alone in zip(lines, record["tasks"][task], strict=True):
            assert line["indexes"]["exact"] == line["png"] == alone["png"]
            more = line["indexes"]["near"]["count"] - line["png"]["count"]
            assert more >= 0 if task == "evade" else more <= 0
    assert by_index["indexes"]["exact"]["rate"] == 1
    assert "by near" in reports.audit_table(by_index)


def test_the_page_shows_rates_distances_and_images(audited, capsys):
    record, folder = audited
    reports.show_audit(folder)
    told = capsys.readouterr().out
    assert "evades its original" in told and "false matches" in told
    page = (folder / "report.html").read_text()
    rate = 100 * record["tasks"]["evade"][-1]["png"]["rate"]
    assert f"{rate:.1f} <small>%" in page and "data:image/png" in page
    assert "matches a chosen victim" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [IMAGES[0], IMAGES[0]]}, "all be different"),
        ({"images": []}, "at least one image"),
        ({"images": "nowhere"}, "expected a folder of images, got 'nowhere'"),
        ({"images": [IMAGES[0] / 255.0]}, "must be uint8"),
        ({"epsilons": (0.001,)}, "at least 1 / 255"),
        ({"epsilons": (4,)}, "8 grey levels are 8 / 255"),
        ({"groups": "("}, "groups must be a regular expression"),
        ({"groups": "x"}, "finds no two names alike, such as 0, 1, 2"),
        ({"point": {"false_match_rate": 1e-4}}, "give more images"),
    ],
)
def test_what_cannot_be_audited_is_refused(change, message, tmp_path):
    given = {"images": IMAGES, "point": POINT} | change
    images, point = given.pop("images"), given.pop("point")
    with pytest.raises(ValueError, match=message):
        audit(make(), images, point, folder=tmp_path, **given)


def test_photos_that_cannot_be_read_are_all_named(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "good.png")
    (tmp_path / "inner").mkdir()
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "inner" / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 3 images(.|\n)*bad.jpg(.|\n)*inner/empty.png"):
        load_photos(tmp_path)


def test_the_command_audits_a_hash_on_a_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("imagehash")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for row, image in enumerate(IMAGES[:3]):
        Image.fromarray(image).resize((40, 30)).save(folder / f"{row}.png")
    arguments = ["audit", "--config", "audit:dhash", f"--config.images={folder}"]
    command.main([*arguments, "--config.epsilons=(8/255,)"])
    assert "dhash, 64 bits, radius 10" in capsys.readouterr().out
    assert (tmp_path / "runs" / "audit" / "report.html").is_file()
    with pytest.raises(ValueError, match="encoder 'nothing' is none of"):
        command.main([*arguments, "--config.encoder=nothing"])
