"""Names out of tables, numbers within ranges, declared options, shapes of arrays."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import attacks, defenses, demo, lists, reproduce, train_hash
from saat_jax import labels, options

CONFIGS = {
    **{f"attacks:{v}": lambda v=v: attacks.get_config(v) for v in attacks.VARIANTS},
    **{f"defenses:{v}": lambda v=v: defenses.get_config(v) for v in attacks.VARIANTS},
    **{f"demo:{v}": lambda v=v: demo.get_config(v) for v in ("", "smoke")},
    **{f"lists:{v}": lambda v=v: lists.get_config(v) for v in lists.VARIANTS},
    **{
        f"{module.__name__}:{v}": lambda module=module, v=v: module.get_config(v)
        for objective in train_hash._OBJECTIVES
        for module, v in (
            (train_hash, f"flickr25k,{objective},alexnet,32,saat"),
            (train_hash, f"coco,{objective},convnet,48,prosgan"),
            (reproduce, f"saat,nuswide,{objective},vgg11,32,small"),
            (reproduce, f"prosgan,nuswide,{objective},vgg11,32"),
        )
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(options.Options):
    epsilon: float
    bits: Literal["few", "many"] = "few"
    strength: float = 1.0
    loud: bool = False


# --- tables ---


def test_a_table_lists_its_names_and_takes_new_ones():
    table = options.Choices("fruit", {"apple": 1})
    table.register("pear", 2)
    assert table["pear"] == 2
    with pytest.raises(ValueError, match=r"unknown fruit 'plum'; expected one of \['apple', 'pear"):
        table["plum"]
    with pytest.raises(ValueError, match="there is a fruit 'pear' already"):
        table.register("pear", 3)
    for name in ("", "../up", "a/b", ".hidden", "-flag", "x" * 101, None):
        with pytest.raises(ValueError, match="the name of a fruit"):
            table.register(name, 3)
    with pytest.raises(ValueError, match="unknown fruit None"):
        table[None]


def test_messages_are_not_flooded():
    for value in ("x" * 10**6, "a\x1b[31m\n"):
        with pytest.raises(ValueError) as caught:
            options.Choices("fruit", {})[value]
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


# --- numbers ---


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"epsilon": 8}, "epsilon must be a number from 0 to 1, got 8: 8 grey levels are 8 / 255"),
        ({"epsilon": np.float32(-0.03)}, "epsilon must .*got -0.03"),
        ({"epsilon": float("nan")}, "epsilon must .*got nan"),
        ({"step_size": float("inf")}, "step_size must .*got inf"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"seed": -1}, "seed must be a whole number from 0 .*got -1"),
        ({"seed": 2**64}, "seed must .*got 18446744073709551616"),
        ({"seed": 10**400}, r"seed must .*got 1000.*401 characters"),
        ({"num_bits": 16.0}, "num_bits must be a whole number .*got 16"),
        ({"num_bits": "16"}, "num_bits must .*got '16'"),
        ({"batch_size": True}, "batch_size must .*got True"),
        ({"num_epochs": 0}, "num_epochs must .*from 1"),
        ({"evaluate_every": 0}, "evaluate_every must .*from 1"),
        ({"hash_weight": -1}, "hash_weight must be a number of 0 or more, got -1"),
        ({"widths": (8, 0)}, "widths must .*got 0"),
        ({"widths": ("a",)}, "widths must .*got 'a'"),
        ({"anneal": 0}, "anneal must be True, False or a whole number .*got 0"),
        ({"contrast": 50}, "contrast must be a number above 0 to 1, got 50: 1 is 20"),
        ({"attacks": {"mine": {"epsilon": 8}}}, r"attacks\.mine\.epsilon must"),
    ],
)
def test_numbers_out_of_their_range_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        options.check_numbers(**numbers)


def test_numbers_within_their_range_pass():
    options.check_numbers(
        epsilon=np.float32(0.5), seed=np.int64(3), k=None, anneal=True, widths=(1, 2), unknown="x"
    )
    options.check_numbers("place", epsilon=jnp.float32(0.5))
    jax.jit(lambda epsilon: options.check_numbers(epsilon=epsilon))(8.0)
    assert options.range_of("quantization_weight") == options.Range(0)
    assert options.range_of("color") is None


@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_of_the_configs_has_a_range_and_lies_in_it(name):
    config = CONFIGS[name]()

    def walk(section):
        for field, value in section.items():
            if isinstance(value, ml_collections.ConfigDict):
                walk(value)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not isinstance(number, bool):
                    assert options.range_of(field), field

    walk(config)
    options.check_numbers("config", **config.to_dict())


# --- declared options ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "toy needs the option 'epsilon'"),
        ({"epsilon": 0.1, "color": 1}, r"toy has no option 'color'; it has \['bits', 'epsilon', "),
        ({"epsilon": 8}, "toy: epsilon must .*8 / 255"),
        ({"epsilon": 0.1, "bits": "none"}, r"toy: unknown bits 'none'; expected .*\['few', 'many'"),
        ({"epsilon": 0.1, "strength": float("nan")}, "toy: strength must be a number, got nan"),
        ({"epsilon": 0.1, "loud": "no"}, "toy: loud must be True or False, got 'no'"),
    ],
)
def test_options_are_checked_against_their_declaration(given, message):
    with pytest.raises(ValueError, match=message):
        options.create(Toy, "toy", given)


def test_declared_options():
    expected = {"epsilon": ..., "bits": "few", "strength": 1.0, "loud": False}
    assert options.declared(Toy) == expected
    assert options.create(Toy, "toy", {"epsilon": 0.5, "loud": np.True_}) == Toy(
        epsilon=0.5, loud=np.True_
    )


# --- shapes and labels ---


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function])
def test_arrays_of_other_shapes_are_refused(wrap):
    @wrap
    def check(codes, others):
        options.check_shapes(codes=(codes, "batch num_bits"), others=(others, "batch num_bits"))

    check(np.ones((4, 8)), np.ones((4, 8)))
    for shape in ((8,), (1, 8), (4, 1), (4, 8, 1)):
        with pytest.raises(ValueError, match=r"others must be .*batch=4, num_bits=8, got \("):
            check(np.ones((4, 8)), np.ones(shape))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[1, 0]], "mine must be an array .*got list"),
        (np.array([1, 0]), "mine must be of shape .*one_hot"),
        (np.array([[1, 0, 1]]), "mine must have 2 classes"),
        (np.array([[1, -1]]), "mine must be multi-hot.*got -1"),
        (np.array([[1, np.nan]]), "mine must be multi-hot.*got nan"),
        (np.array([[1, np.inf]]), "mine must be multi-hot.*got inf"),
        (np.array([["a", "b"]]), "mine must be numbers"),
    ],
)
def test_what_is_no_label_matrix_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        labels.check_labels("mine", wrong, num_classes=2)


def test_labels_of_any_type_pass():
    for dtype in (bool, np.uint8, np.int64, np.float32, jnp.bfloat16):
        labels.check_labels("mine", np.eye(2).astype(dtype), num_classes=2)
    labels.check_labels("mine", np.zeros((0, 2)))
    jax.jit(lambda x: labels.check_labels("mine", x))(np.full((1, 2), np.nan))
