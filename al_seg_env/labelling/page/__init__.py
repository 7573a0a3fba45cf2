"""The labelling page, on which people label requested regions: the distribution of requests, and the server."""
