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

# Modules that train, craft many images or run the command: `make test-fast` leaves them out.
SLOW = {
    "attacks_momentum_test",
    "attacks_optimized_test",
    "attacks_test",
    "bad_inputs_test",
    "cost_test",
    "defenses_atrdh_test",
    "defenses_cgat_test",
    "defenses_test",
    "evaluation_test",
    "families_test",
    "generative_test",
    "launch_test",
    "networks_test",
    "pipeline_test",
    "prototypes_test",
    "recovery_test",
    "reproduce_test",
    "training_test",
}


def pytest_collection_modifyitems(items):
    """Marks the tests of the slow modules."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
