"""Encoders agree with their own runtimes, and their gradients with those of PyTorch."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from saat_jax import encoders, pipeline


def _noise(*shapes):
    """Smooth colours with noise on them, as photos are."""
    rng = np.random.default_rng(0)
    images = []
    for height, width in shapes:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
        noisy = smooth + rng.integers(-20, 21, smooth.shape)
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return images


def _torch_cnn(torch):
    nn = torch.nn
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 32, 3, 1, 1, groups=2), nn.Hardswish(), nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(512, 24),
    )  # fmt: skip


def _torch_vit(torch):
    nn = torch.nn
    torch.manual_seed(1)

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(
                32, 4, 64, activation="gelu", batch_first=True, norm_first=True, dropout=0.0
            )
            self.patches = nn.Conv2d(3, 32, 16, 16)
            self.first = nn.Parameter(torch.randn(1, 1, 32))
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(32, 24)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
            return self.head(self.layers(x)[:, 0])

    return ViT()


MODULES = {"cnn": _torch_cnn, "vit": _torch_vit}


def _gradients(torch, module, encoder, images):
    """PyTorch's, and ours within a compiled loop."""
    given = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_(True)
    (expected,) = torch.autograd.grad((torch.tanh(module(given)) ** 2).sum(), given)

    def loss(x):
        return jnp.sum(encoder.encode_fn(encoder.variables, x, 1.0) ** 2)

    def body(_, total):
        return total + jax.grad(loss)(images) / 2

    actual = jax.jit(lambda: jax.lax.fori_loop(0, 2, body, jnp.zeros_like(images)))()
    return expected.numpy().transpose(0, 2, 3, 1), actual


@pytest.mark.parametrize("name", MODULES)
def test_a_torch_module_is_itself_and_so_is_its_gradient(name):
    torch = pytest.importorskip("torch")
    module = MODULES[name](torch)
    encoder = pipeline.load_encoder(module, image_size=(64, 64))
    images = _noise(*[(64, 64)] * 3)
    found = encoders.parity(encoder, images)
    assert (encoder.num_bits, found.bits_differ) == (24, 0)
    assert found.largest_difference < 1e-4
    expected, actual = _gradients(torch, module, encoder, np.stack(images) / np.float32(255))
    np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max())
    # No gradient is left in the module, and another module is another encoder.
    assert all(parameter.grad is None for parameter in module.parameters())
    with torch.no_grad():
        next(iter(module.parameters())).add_(0.1)
    other = encoders.from_torch(module, image_size=(64, 64))
    assert other.fingerprint != encoder.fingerprint


def test_a_torch_module_normalises_inside():
    torch = pytest.importorskip("torch")
    module = torch.nn.Flatten()
    encoder = encoders.from_torch(
        module, image_size=(1, 1), mean=(0.5, 0.25, 0.0), deviation=(0.5, 0.25, 1.0)
    )
    image = np.array([[[255, 0, 51]]], np.uint8)
    np.testing.assert_allclose(encoder.run([image]), [[1.0, -1.0, 0.2]], atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_an_onnx_file_is_its_runtimes_and_its_gradient_is_pytorchs(name, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    module = MODULES[name](torch).eval()
    path = tmp_path / "model.onnx"
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(
        module, (torch.rand(2, 3, 64, 64),), path, input_names=["x"], output_names=["y"],
        dynamo=False, dynamic_axes=axes,
    )  # fmt: skip
    encoder = pipeline.load_encoder(str(path))
    images = _noise(*[(64, 64)] * 3)
    found = encoders.parity(encoder, images)
    assert (encoder.num_bits, encoder.image_size, found.bits_differ) == (24, (64, 64), 0)
    assert found.largest_difference < 1e-4
    expected, actual = _gradients(torch, module, encoder, np.stack(images) / np.float32(255))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_a_plain_function_has_codes_and_no_gradient():
    def function(images):
        return np.stack([image[:2, :, 0].reshape(-1) - 99.5 for image in images])

    encoder = encoders.from_function(function, image_size=(8, 8))
    images = _noise((8, 8), (8, 8))
    assert encoders.parity(encoder, images).bits_differ == 0
    batch = np.stack(images) / np.float32(255)
    gradient = jax.grad(lambda x: jnp.sum(encoder.encode_fn({}, x, 1.0)))(jnp.asarray(batch))
    assert not encoder.differentiable and np.count_nonzero(gradient) == 0


def test_signs_of_an_embedding_are_those_of_the_centred_and_rotated_vector():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(48, 12)).astype(np.float32)
    embedding = encoders.from_jax(
        lambda x: 20 + 3 * x.reshape(len(x), -1) @ weights, image_size=(4, 4)
    )
    images = [rng.integers(0, 256, (4, 4, 3)).astype(np.uint8) for _ in range(9)]
    center, rotation = embedding.run(images).mean(axis=0), rng.normal(size=(12, 16))
    signs = encoders.sign_quantized(embedding, center=center, rotation=rotation)
    expected = (embedding.run(images) - center) @ rotation
    np.testing.assert_allclose(signs.run(images), expected, rtol=1e-3, atol=1e-3)
    found = encoders.parity(signs, images)
    assert (signs.num_bits, found.bits_differ) == (16, 0)
    assert signs.fingerprint != encoders.sign_quantized(embedding, center=center).fingerprint
    with pytest.raises(ValueError, match=r"center must be \[12\]"):
        encoders.sign_quantized(embedding, center=np.zeros(5))


def test_images_of_many_sizes_keep_their_places():
    images = [*_noise((8, 6), (4, 4), (8, 6)), *_noise((9, 9))]
    found = encoders.by_shape(images, lambda batch: batch[:, 0, 0])
    expected = np.stack([image[0, 0] for image in images]) / np.float32(255)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("pdqq", {}, "encoder 'pdqq' is none of"),
        ("none.onnx", {}, "there is no file 'none.onnx'"),
        ("none.py:make", {}, "there is no file 'none.py'"),
        (7, {}, "an encoder must be a name"),
        (lambda images: images, {"image_size": (4, 4)}, "must map images"),
    ],
)
def test_what_is_no_encoder_is_refused(source, given, message):
    if str(source).endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=message):
        pipeline.load_encoder(source, **given)


@pytest.mark.parametrize(
    "images",
    [[], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3))], [np.zeros((5, 4, 3), np.uint8)]],
    ids=str,
)
def test_what_is_no_image_is_refused(images):
    encoder = encoders.from_jax(lambda x: x.mean(axis=(1, 2)) - 0.5, image_size=(4, 4))
    with pytest.raises(ValueError, match="image"):
        encoder.run(images)


def test_a_file_gives_an_encoder_by_its_function(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from saat_jax import encoders\n"
        "def make():\n"
        "    return encoders.from_jax(lambda x: x.mean(axis=(1, 2)) - 0.5, image_size=(4, 4))\n"
    )
    assert pipeline.load_encoder(f"{path}:make").num_bits == 3
    with pytest.raises(ValueError, match="has no function 'other'"):
        pipeline.load_encoder(f"{path}:other")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities on this system")
def test_a_callback_on_a_single_core_is_refused_rather_than_to_wait_forever():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from saat_jax import encoders\n"
        "encoders.from_function(lambda i: [[0.0]] * len(i), image_size=(2, 2))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert "set PJRT_NPROC=2" in done.stderr
