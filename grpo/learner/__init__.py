"""The state of training: policy, reference, optimizer, batches, weights, checkpoints."""
