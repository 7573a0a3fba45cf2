"""A policy that an experiment names as ``module:function``."""

from agents import UniformPolicy


def own_policy(env, seed):
    """A method of one's own."""
    return UniformPolicy(seed + 100)
