"""The model card of the docs: its numbers, and the script that counts them."""

import inspect
import pathlib
import re

import pytest

from benchmarks import model_card
from saat_jax import networks, objectives

DOCS = (pathlib.Path(__file__).parents[1] / "docs" / "models.md").read_text()


def _rows():
    """{(network, pixels): the other cells} of the docs' table."""
    lines = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*) \|$", DOCS, flags=re.MULTILINE)
    return {(name, int(pixels)): cells.split(" | ") for name, pixels, cells in lines}


def test_every_network_has_its_row():
    rows = _rows()
    assert rows.keys() == {(name, 224) for name in networks.NETWORKS} | {("convnet", 64)}
    for cells in rows.values():
        arguments, temporary, total = (int(cell.replace(",", "")) for cell in cells[3:])
        assert arguments + temporary <= total


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("alexnet", 224), ("convnet", 64), ("convnet", 224), ("resnet18", 224), ("vgg19_bn", 224)],
)
def test_counts_of_the_docs_are_those_of_the_networks(name, pixels):
    card = networks.model_card(name, num_bits=model_card.NUM_BITS, image_size=pixels)
    expected = [
        f"{card['parameters']:,}",
        f"{card['backbone_parameters']:,}",
        f"{card['flops'] / 1e9:.3g}",
    ]
    assert _rows()[name, pixels][:3] == expected


def test_memory_of_a_step_worked_by_hand():
    memory = model_card.pgd_memory("convnet", image_size=8)
    images, codes = 32 * 8 * 8 * 3, 32 * 32
    # Running mean and variance of the channels of five normalisations.
    statistics = 2 * (16 + 32 + 64 + 128 + 128)
    card = networks.model_card("convnet", num_bits=32, image_size=8)
    assert memory["arguments"] == 4 * (card["parameters"] + statistics + images + codes)
    assert memory["output"] == 4 * images
    # At least what the first convolution puts out.
    assert memory["temporary"] >= 4 * 32 * 8 * 8 * 16


def test_the_script_prints_rows_of_the_table(capsys):
    model_card.main(["convnet"])
    printed = capsys.readouterr().out
    assert model_card._HEAD in printed and model_card._HEAD in DOCS
    rows = re.findall(r"^\| `convnet` \| (\d+) \| (.*) \|$", printed, flags=re.MULTILINE)
    assert [pixels for pixels, _ in rows] == ["64", "224"]
    for pixels, cells in rows:
        assert cells.split(" | ")[:3] == _rows()["convnet", int(pixels)][:3]


def test_every_objective_has_its_row_with_its_options():
    lines = dict(re.findall(r"^\| `(\w+)` \| (`\w+` \(.*?\)) \|", DOCS, flags=re.MULTILINE))
    assert lines.keys() == objectives.OBJECTIVES.keys()
    for name, make in objectives.OBJECTIVES.items():
        options = dict(re.findall(r"`(\w+)` \((.*?)\)", lines[name]))
        parameters = inspect.signature(make).parameters
        expected = {key: value.default for key, value in parameters.items()}
        assert options.keys() == expected.keys()
        for key, text in options.items():
            assert text.strip('"') == str(expected[key])
