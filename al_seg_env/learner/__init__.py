"""The learner, which holds the segmentation network f: its interface, its training and its weights."""
