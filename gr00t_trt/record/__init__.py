"""What a run found, as one typed record: written, read, and described. Never imports torch."""
