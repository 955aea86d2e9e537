"""Stages that minimise the next-token loss: pretraining, and the documents it reads."""
