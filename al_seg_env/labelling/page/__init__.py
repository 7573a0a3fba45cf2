"""A page on which people paint what is requested: who gets what, and the server that shows it."""
