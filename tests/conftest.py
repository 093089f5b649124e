"""Eight CPU devices for every test, set before JAX starts."""

import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402

# A shell starts what it puts in the background without Ctrl-C, which some tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Modules that train, craft many images or run the command, the longest first: `make test` starts
# them in this order, so that no core waits for another at the end; `make test-fast` leaves them
# out.
SLOW = [
    "suites_test",
    "launch_test",
    "notebook_test",
    "audit_test",
    "queries_test",
    "pipeline_test",
    "edits_test",
    "universal_test",
    "inserts_test",
    "bad_inputs_test",
    "networks_test",
    "generative_test",
    "evaluation_test",
    "families_test",
    "defenses_test",
    "training_test",
    "defenses_atrdh_test",
    "recovery_test",
    "reproduce_test",
    "readme_test",
    "prototypes_test",
    "search_test",
    "attacks_optimized_test",
    "defenses_cgat_test",
    "attacks_momentum_test",
    "cost_test",
    "attacks_test",
]


def pytest_collection_modifyitems(items):
    """Marks the tests of the slow modules and puts them first."""
    order = {name: place for place, name in enumerate(SLOW)}
    for item in items:
        if item.path.stem in order:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules that compile much and run it on little."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
