"""What a recipe needs: parameters, memory, tokens and FLOPs, estimated without running it."""
