"""The program that puts another checkpoint into a running service, or gets one ready for the next start."""
