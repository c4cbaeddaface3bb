"""Speed and memory beside PyTorch: each framework in its own process, the same weights, measured in turns.

`inference.compare` and `train.compare` are what the launchers call; `ours` and `theirs` are the programs of the two
processes, and are asked through `workers`.
"""
