"""The segmentation network f that is trained: its contract, its training, its weights."""
