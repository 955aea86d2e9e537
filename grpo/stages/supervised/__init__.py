"""Stages that minimise the next-token loss, pretraining and supervised fine-tuning, and the rows they read."""
