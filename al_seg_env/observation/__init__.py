"""What the agent sees: features of regions, acquisition scores, and the observation made of them."""
