"""The labelled set, and the oracles that label regions."""
