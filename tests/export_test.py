"""Model folders: what leaves a run is whole, gives the same bits, and is refused if it is not."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import saat_jax
from launch import command
from saat_jax import encoders, files, networks, pipeline

pytestmark = pytest.mark.usefixtures("quick_compilation")
IMAGES = [*np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)]


def _write(folder, network, seed=0, image_size=16):
    """A folder of an untrained network; returns the network and its variables."""
    folder.mkdir(parents=True)
    model = networks.create_network(**network)
    variables = networks.init_variables(model, jax.random.key(seed), image_size=image_size)
    settings = {"name": "mine", "image_size": image_size, "resize": None, "code_version": "1"}
    encoders.write_model(folder, network, variables, **settings)
    return model, variables


@pytest.mark.parametrize(
    "network",
    [
        {"name": "convnet", "num_bits": 12, "widths": (4, 8)},
        {"name": "convnet", "num_bits": 12, "widths": (4, 8), "input_norm": False},
        {"name": "convnet", "num_bits": 7, "widths": (4,), "dtype": "bfloat16"},
    ],
    ids=lambda network: "-".join(map(str, network.values())),
)
def test_a_folder_gives_the_same_bits(tmp_path, network):
    model, variables = _write(tmp_path / "m", network)
    expected = encoders.from_network(model, variables, image_size=16, name="mine")
    loaded = saat_jax.load_encoder(tmp_path / "m")
    np.testing.assert_array_equal(loaded.run(IMAGES), expected.run(IMAGES))
    assert loaded.fingerprint == expected.fingerprint
    assert (loaded.name, loaded.num_bits) == ("mine", network["num_bits"])


def test_running_statistics_go_with_the_parameters(tmp_path):
    network = {"name": "resnet18", "num_bits": 9}
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(networks.create_network(**network).init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    settings = {"name": "mine", "image_size": 16, "resize": 20, "code_version": "1"}
    encoders.write_model(tmp_path, network, variables, **settings)
    config, _, found = encoders.read_model(tmp_path)
    assert config["resize"] == 20 and found.keys() == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_another_program_reads_the_weights(tmp_path):
    _, variables = _write(tmp_path / "m", {"name": "convnet", "num_bits": 9, "widths": (4,)})
    arrays = safetensors.load_file(tmp_path / "m" / "model.safetensors")
    assert len(arrays) == len(jax.tree.leaves(variables))
    for path, leaf in jax.tree.leaves_with_path(variables):
        np.testing.assert_array_equal(arrays[".".join(key.key for key in path)], leaf)


def test_the_digest_depends_on_names_shapes_and_every_bit():
    array = np.arange(6, dtype=np.float32)
    last_bit = array.copy()
    last_bit.view(np.uint32)[-1] ^= 1
    trees = [
        {"params": {"a": array}},
        {"params": {"b": array}},
        {"params": {"a": array.reshape(2, 3)}},
        {"params": {"a": array.view(np.int32)}},
        {"params": {"a": last_bit}},
    ]
    assert len({encoders.weights_digest(tree) for tree in trees}) == len(trees)
    # Not on how they lie in memory, nor on the order of a dict.
    pair = {"x": np.ones(2), "y": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    same = {"y": np.ascontiguousarray(pair["y"]), "x": pair["x"]}
    assert encoders.weights_digest(pair) == encoders.weights_digest(same)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sound"
    _write(folder, {"name": "convnet", "num_bits": 12, "widths": (4, 8)})
    return folder


def _with_config(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def _with_weights(change):
    def damage(folder):
        path = folder / "model.safetensors"
        safetensors.save_file(change(safetensors.load_file(path)), path)

    return damage


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _nudged(arrays):
    name = "params.hash.kernel"
    return arrays | {name: arrays[name] + np.float32(1e-6)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing; export"),
        (lambda folder: (folder / "config.json").write_text('{"a'), "is no JSON .*; export"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type 'saat_jax', got No"),
        (_with_config(model_type="bert"), "model_type 'saat_jax', got 'bert'"),
        (_with_config(format_version=2), "format_version 1, got 2; use the version"),
        (_with_config(image_size=0), "image_size must be a whole number from 1 .*, got 0"),
        (_with_config(network={"name": "net", "num_bits": 8}), "unknown network 'net'; expected"),
        (
            _with_config(network={"name": "convnet", "num_bits": 8, "depth": 2}),
            "config.json: convnet has no option ",
        ),
        (
            _with_config(network={"name": "convnet", "num_bits": 13, "widths": [4, 8]}),
            "params.hash.* must be float32 .*13.*, got float32 .*12.*; export",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors.* does not exist"),
        (_cut, "is damaged or cut short"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                b"version https://git-lfs.github.com/spec/v1\n"
            ),
            "is a Git LFS pointer.*git lfs pull",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n."),
            "is a PyTorch file, not a safetensors file",
        ),
        (
            _with_weights(lambda a: {k: v for k, v in a.items() if k != "params.hash.kernel"}),
            "lacks 1 of .* arrays, the first being params.hash.kernel",
        ),
        (
            _with_weights(lambda a: a | {"params.extra": np.zeros(1, np.float32)}),
            "has 1 arrays that the network has not, the first being params.extra",
        ),
        (_with_weights(_nudged), "digest .*, but config.json names .*; export"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(sound, tmp_path, damage, message):
    shutil.copytree(sound, tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        saat_jax.load_encoder(tmp_path / "m")


def test_a_new_folder_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "m"
    with pytest.raises(RuntimeError, match="stop"), files.new_folder(path) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("stop")
    assert not any(path.parent.iterdir())
    with files.new_folder(path) as folder:
        (folder / "a").write_text("x")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a"]
    assert [p.name for p in path.parent.iterdir()] == ["m"]
    for taken in (path, path / "a"):
        with (
            pytest.raises(ValueError, match="is there already, and is not replaced"),
            files.new_folder(taken),
        ):
            pytest.fail("the block must not run")
    assert (path / "a").read_text() == "x"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was trained for an epoch, by the command."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    settings = ["--config.task=train_hash", "--config.data.num_query=20"]
    command.main(["--config", "demo:smoke", "--workdir", str(folder), *settings])
    return folder


def test_the_command_exports_a_model_of_a_run(run, tmp_path, capsys):
    target = tmp_path / "models" / "digits"
    arguments = ["export", str(run), "pretrained", str(target)]
    command.main(arguments)
    assert capsys.readouterr().out.strip().endswith(f"model: {target}")
    # Not judged, so no card.
    names = sorted(path.name for path in target.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    ours, theirs = saat_jax.load_encoder(str(target)), saat_jax.load_encoder(f"{run}:pretrained")
    images = [*np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)]
    np.testing.assert_array_equal(ours.run(images), theirs.run(images))
    readme = (target / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: saat-jax\n") and "Not judged yet." in readme
    assert "32 x 32 pixels" in readme and ours.name in readme
    before = {path: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(ValueError, match="is there already, and is not replaced"):
        command.main(arguments)
    assert before == {path: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(ValueError, match="model 'hardened' is not trained"):
        pipeline.export_model(str(run), "hardened", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="no run in"):
        pipeline.export_model(str(tmp_path), "pretrained", str(tmp_path / "none"))
