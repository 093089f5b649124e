"""Attack and harden deep-hashing image retrieval in JAX."""

__version__ = "0.1.0"
