"""Fine-tuning: a checkpoint trained further on recorded demonstrations."""
