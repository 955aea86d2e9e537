"""Stage `pipeline`: the stages of a graph, one after the other, each in processes of its own.

graph: a recipe's stages, checked and in order. ledger: what has finished, from which recipe and inputs. run: the loop.
held_out: the evaluation of each stage's model. page: all stages side by side.
"""
