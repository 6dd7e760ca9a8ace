"""What every room uses: files, progress, the manners of a program, devices. Knows nothing of models."""
