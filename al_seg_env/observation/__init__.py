"""The agent's observation, and what it consists of: features of regions, and acquisition scores."""
