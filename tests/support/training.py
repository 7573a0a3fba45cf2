"""What two equal trainings have in common: their states without clock readings."""

from collections import deque

CLOCKS = ("t", "start_time", "t_start", "episode_times", "_num_timesteps_at_start")


def clean(state):
    """Return a state without clock readings."""
    if isinstance(state, dict):
        return {key: clean(value) for key, value in state.items() if key not in CLOCKS}
    return [clean(item) for item in state] if isinstance(state, list | deque) else state
