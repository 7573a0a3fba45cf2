"""What is labelled, and who labels."""
