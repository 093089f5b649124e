"""Perceptual hashes give the bits of their own libraries, and gradients of use."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saat_jax import encoders
from saat_jax.encoders import perceptual
from tests import golden

PHOTOS = golden.FOLDER.parent / "data" / "coco256" / "images"
LIBRARIES = {"pdq": "pdqhash", "phash": "imagehash", "dhash": "imagehash", "ahash": "imagehash"}
OF_IMAGEHASH = ["phash", "dhash", "ahash"]


def _encoder(name):
    pytest.importorskip(LIBRARIES[name])
    return encoders.PERCEPTUAL_HASHES[name]()


def _noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _photo(height, width):
    """Smooth colours with noise on them, as photos are."""
    smooth = Image.fromarray(_noise(6, 5)).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(1).integers(-20, 21, (height, width, 3))
    return np.clip(np.asarray(smooth, int) + noise, 0, 255).astype(np.uint8)


def _grey(levels):
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("name", LIBRARIES)
def test_bits_are_the_librarys_at_any_size(name):
    # Small, tall, of even and odd filters, and one that is not resized along one side.
    images = [_noise(17, 15), _noise(900, 20), _photo(32, 129), _photo(301, 640)]
    assert encoders.parity(_encoder(name), images).bits_differ == 0


@pytest.mark.parametrize("name", LIBRARIES)
def test_bits_are_the_librarys_on_photos(name):
    encoder = _encoder(name)
    if not PHOTOS.is_dir():
        pytest.skip(f"photos absent: no {PHOTOS}; set GOLDEN_DIR to the golden vectors beside them")
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(PHOTOS.rglob("*.jpg"))]
    # Of one size, which compiles once.
    images = [image for image in images if image.shape == (256, 341, 3)][:64]
    assert len(images) == 64
    found = encoders.parity(encoder, images)
    assert (found.num_bits, found.bits_differ) == (64 * encoder.num_bits, 0)


@pytest.mark.parametrize("name", OF_IMAGEHASH)
def test_ties_come_out_as_in_the_library(name):
    rows, columns = np.mgrid[:60, :60]
    flat = [np.full((60, 60), level) for level in (0, 1, 90, 255)]
    halves, ramp = np.where(columns < 30, 90, 200), 4 * columns
    boards = [255 * ((rows // side + columns // side) % 2) for side in (12, 30)]
    levels = [*flat, halves, halves.T, ramp, ramp.T, 236 - ramp, *boards]
    assert encoders.parity(_encoder(name), [_grey(image) for image in levels]).bits_differ == 0


@pytest.mark.parametrize("name", OF_IMAGEHASH)
def test_a_few_pixels_are_hashed_as_in_the_library(name):
    images = [_noise(1, 1), _noise(2, 1), _noise(3, 7), _noise(8, 9)]
    assert encoders.parity(_encoder(name), images).bits_differ == 0


def test_pdq_of_its_own_size_is_the_librarys_and_so_is_black():
    images = [_photo(64, 64), _grey(np.zeros((64, 64)))]
    assert encoders.parity(_encoder("pdq"), images).bits_differ == 0


def test_pdq_refuses_what_it_has_no_hash_of():
    encoder = encoders.pdq()
    with pytest.raises(ValueError, match="at least 5 x 5 pixels, got 4 x 100"):
        encoder.encode_fn({}, jnp.zeros((1, 4, 100, 3)), 1.0)
    pytest.importorskip("pdqhash")
    with pytest.raises(ValueError, match="at least 5 x 5 pixels, got 100 x 4"):
        encoder.run([_noise(100, 4)])


@pytest.mark.parametrize("name", LIBRARIES)
def test_gradients_are_finite_and_not_zero(name):
    encoder = encoders.PERCEPTUAL_HASHES[name]()
    # Also where resizing is clipped: of black and of white.
    images = np.stack([_noise(80, 96), *(_grey(np.full((80, 96), level)) for level in (0, 255))])
    weights = np.random.default_rng(0).normal(size=encoder.num_bits)

    def loss(images):
        codes = encoder.encode_fn({}, images, 1e-5)
        assert (codes.shape, codes.dtype) == ((3, encoder.num_bits), jnp.float32)
        return jnp.sum(codes * weights)

    gradients = jax.jit(jax.grad(loss))(images / np.float32(255))
    assert gradients.dtype == jnp.float32 and np.isfinite(gradients).all()
    # PDQ looks at 64 x 64 pixels of an image as small as this.
    for gradient in gradients:
        assert np.mean(gradient != 0) > 0.5


def test_a_brighter_image_raises_each_pixel_of_ahash_alike():
    # Weights of colours sum to one, and so do those of resizing, whatever is rounded or clipped.
    scale = 1e-6
    image = _noise(50, 60)[None] / np.float32(255)
    encode_fn = encoders.ahash().encode_fn
    jacobian = jax.jit(jax.jacobian(lambda images: encode_fn({}, images, scale)))(image)
    np.testing.assert_allclose(jacobian.sum(axis=(2, 3, 4, 5)), 255 * scale, rtol=1e-3)


@pytest.mark.parametrize("size", [5, 63, 64, 128, 129, 300, 1000])
def test_the_matrix_of_pdq_is_two_box_filters_a_choice_and_a_cosine_transform(size):
    # Slowly: means of windows that are cut at both ends, then every center, then the sums.
    values = np.random.default_rng(0).uniform(0, 255, size)
    window = (size + 127) // 128
    expected = values
    for _ in range(2):
        first = [place - (window - 1) // 2 for place in range(size)]
        expected = np.array([np.mean(expected[max(i, 0) : i + window]) for i in first])
    small = [expected[int((place + 0.5) * size / 64)] for place in range(64)]
    block = [
        np.sqrt(2 / 64) * sum(v * np.cos(np.pi / 64 * k * (n + 0.5)) for n, v in enumerate(small))
        for k in range(1, 17)
    ]
    np.testing.assert_allclose(perceptual._pdq_matrix(size) @ values, block, atol=1e-3)


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_absent_library_is_asked_for(name, monkeypatch):
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    with pytest.raises(ModuleNotFoundError, match="pip install (pdqhash|ImageHash)"):
        encoders.PERCEPTUAL_HASHES[name]().run([_noise(20, 20)])


def test_hashes_are_told_apart():
    hashes = [make() for make in encoders.PERCEPTUAL_HASHES.values()]
    assert len({encoder.fingerprint for encoder in hashes}) == len(hashes)
    # Whose resizing changes between versions.
    assert "pillow" in encoders.phash().runtime
    with pytest.raises(ValueError, match="unknown perceptual hash 'md5'"):
        encoders.PERCEPTUAL_HASHES["md5"]
